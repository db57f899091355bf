"""Text: tokenizers, chat templates, conversations with loss masks."""

from mgm_jax.text.conversation import (
    RecordError,
    Segment,
    Turn,
    encode,
    encode_prompt,
    images_first,
    record_images,
    render,
    render_prompt,
    stop_rule,
    turns_from_record,
)
from mgm_jax.text.json_tokenizer import JsonTokenizer
from mgm_jax.text.records import FAITHFUL, check_turns, encode_record
from mgm_jax.text.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from mgm_jax.text.templates import (
    IGNORE,
    IMAGE_ID,
    IMAGE_TEXT,
    TEMPLATES,
    Role,
    RoundRule,
    Template,
    get_template,
)
from mgm_jax.text.tokenizer import Tokenizer, load_tokenizer
from mgm_jax.text.tokenizer import from_hf as tokenizer_from_hf

__all__ = [
    "FAITHFUL",
    "IGNORE",
    "IMAGE_ID",
    "IMAGE_TEXT",
    "TEMPLATES",
    "JsonTokenizer",
    "RecordError",
    "Role",
    "RoundRule",
    "Segment",
    "SentencePieceTokenizer",
    "Template",
    "Tokenizer",
    "Turn",
    "check_turns",
    "encode",
    "encode_prompt",
    "encode_record",
    "get_template",
    "images_first",
    "load_tokenizer",
    "record_images",
    "render",
    "render_prompt",
    "stop_rule",
    "tokenizer_from_hf",
    "train_tokenizer",
    "turns_from_record",
]
