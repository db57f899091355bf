"""Text: tokenizers, chat templates, conversations with loss masks."""

from mgm_jax.text.conversation import (
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
from mgm_jax.text.records import encode_record
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
from mgm_jax.text.tokenizer import SentencePieceTokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "IGNORE",
    "IMAGE_ID",
    "IMAGE_TEXT",
    "TEMPLATES",
    "Role",
    "RoundRule",
    "Segment",
    "SentencePieceTokenizer",
    "Template",
    "Turn",
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
    "train_tokenizer",
    "turns_from_record",
]
