"""Tokenizers of folders in Hugging Face's layout."""

import json

import pytest
from test_json_tokenizer import BOS, file

from mgm_jax.text import JsonTokenizer, SentencePieceTokenizer, load_tokenizer, tokenizer_from_hf


@pytest.fixture
def folder(tmp_path, llama2):
    """Makes a folder of the given json files, with the LLaMA-2 model unless told otherwise."""

    def make(model=llama2["llama2_slow_legacy_true"]._model, fast=None, **files):
        for name, data in (("tokenizer.model", model), ("tokenizer.json", fast)):
            if data is not None:
                (tmp_path / name).write_bytes(data)
        for name, value in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return tmp_path

    return make


def token(text, **fields):
    return {"content": text, "lstrip": False, "rstrip": False, "normalized": False, **fields}


def test_bare_model(folder):
    t = tokenizer_from_hf(folder())
    assert isinstance(t, SentencePieceTokenizer) and t.legacy and t.add_bos
    assert (t.bos_id, t.eos_id, t.pad_id, t.vocab_size) == (1, 2, 0, 32000)


@pytest.mark.parametrize("value, legacy", [(True, True), (False, False), (None, True)])
def test_legacy_of_vicuna(folder, llama2, value, legacy):
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": value,
        "add_bos_token": True,
        "bos_token": token("<s>"),
        "eos_token": token("</s>"),
        "pad_token": None,
        "unk_token": token("<unk>"),
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    t = tokenizer_from_hf(folder(tokenizer_config=config, special_tokens_map=special))
    assert (t.legacy, t.pad_id, t.eos_id) == (legacy, 0, 2)
    same = llama2[f"llama2_slow_legacy_{str(legacy).lower()}"]
    assert t.encode("A</s>USER: 12") == same.encode("A</s>USER: 12")


def test_a_chat_model_without_bos(folder, named):
    """As Nous-Hermes-2-Yi: no bos, <|im_end|> ends, added tokens listed in two files."""
    t = tokenizer_from_hf(
        folder(
            tokenizer_config={
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": False,
                "eos_token": "<|im_end|>",
                "added_tokens_decoder": {"2": token("</s>"), "32000": token("<|im_start|>")},
            },
            added_tokens={"<|im_end|>": 32001},
        )
    )
    assert (t.eos_id, t.pad_id, t.add_bos, t.vocab_size) == (32001, 0, False, 32002)
    text = "<|im_start|>user\nHi<|im_end|>"
    assert t.encode(text) == named("llama2_chatml_nobos_legacy_true").encode(text)


def test_tokens_that_are_only_named_come_last(folder):
    t = tokenizer_from_hf(
        folder(
            added_tokens={"<im_patch>": 32000},
            special_tokens_map={
                "pad_token": "[PAD]",
                "eos_token": token("</s>"),
                "additional_special_tokens": ["</s>", token("<im_start>")],
            },
        )
    )
    assert (t.token_id("<im_patch>"), t.pad_id, t.token_id("<im_start>")) == (32000, 32001, 32002)
    assert t.vocab_size == 32003


def test_a_named_piece_is_cut_out_of_texts(folder):
    """Yi's <|im_end|> is a piece of its model: naming it makes it a special token in its place."""
    t = tokenizer_from_hf(folder(tokenizer_config={"eos_token": "▁hello"}))
    assert (t.eos_id, t.vocab_size) == (t.special_tokens["▁hello"], 32000)


def test_json_alone(folder):
    t = tokenizer_from_hf(folder(model=None, fast=file(post_processor=BOS)))
    assert isinstance(t, JsonTokenizer) and t.add_bos
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eot_id|>"}
    t = tokenizer_from_hf(folder(model=None, tokenizer_config=config))
    assert (t.bos_id, t.eos_id) == (0, 2)


def test_which_file_is_taken(folder):
    llama = tokenizer_from_hf(folder(fast=file(), tokenizer_config={"tokenizer_class": "Llama"}))
    assert isinstance(llama, SentencePieceTokenizer)
    config = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<|begin_of_text|>"}
    gemma = tokenizer_from_hf(folder(fast=file(), tokenizer_config=config))
    assert isinstance(gemma, JsonTokenizer) and gemma.add_bos
    other = folder(model=b"IQ== 0\nIg== 1\n", tokenizer_config={})  # tiktoken's format
    assert isinstance(tokenizer_from_hf(other), JsonTokenizer)


def test_real_folders(named):
    from tests.text.conftest import asset

    t = tokenizer_from_hf(asset("gemma/tokenizer.json").parent)
    assert (t.bos_id, t.eos_id, t.pad_id, t.unk_id, t.add_bos) == (2, 1, 0, 3, True)
    t = tokenizer_from_hf(asset("llama3/tokenizer.json").parent)
    assert (t.bos_id, t.eos_id, t.pad_id, t.add_bos) == (128000, 128001, 128002, False)
    assert t.encode("a<|eot_id|>") == named("llama3_nobos").encode("a<|eot_id|>")


@pytest.mark.parametrize("fast", [False, True])
def test_a_checkpoint_keeps_it(folder, tmp_path, fast):
    kind = {"model": None, "fast": file()} if fast else {}
    t = tokenizer_from_hf(folder(special_tokens_map={"pad_token": "[PAD]"}, **kind))
    t.save(tmp_path / "checkpoint" / "tokenizer")
    other = load_tokenizer(tmp_path / "checkpoint" / "tokenizer")
    text = "the cat[PAD] 12 😀"
    assert type(other) is type(t) and other.encode(text) == t.encode(text)
    assert (other.pad_id, other.eos_id, other.vocab_size) == (t.pad_id, t.eos_id, t.vocab_size)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"model": b"rubbish"}, "tokenizer.model: not a sentencepiece model.*no tokenizer.json"),
        ({"model": None, "fast": b"rubbish"}, "tokenizer.json: not a tokenizer.json"),
        ({"tokenizer_config": []}, "tokenizer_config.json: found a list, expected an object"),
        ({"tokenizer_config": {"legacy": "no"}}, "legacy is 'no', expected true, false or null"),
        ({"added_tokens": {"<a>": "7"}}, "added_tokens.json: found"),
        ({"added_tokens": {"<a>": 7}}, "special token '<a>' has id 7"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"32000": "<a>"}}},
            "tokenizer_config.json: added_tokens_decoder has '32000'",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, r"added_tokens_decoder is \[1\]"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"32000": token("<a>", lstrip=True)}}},
            "'<a>' takes in the spaces around it",
        ),
    ],
)
def test_bad_folders(folder, files, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_from_hf(folder(**files))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer; expected tokenizer.model"):
        tokenizer_from_hf(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        tokenizer_from_hf(tmp_path / "absent")
