import functools
import lzma
import pathlib

import pytest

from mgm_jax.text import JsonTokenizer, SentencePieceTokenizer, train_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
ASSETS = ROOT / ".assets"


def asset(name):
    """A file that `make assets` fetches; the test is skipped without it."""
    if not (path := ASSETS / name).is_file():
        pytest.skip(f"{name} is not there: run `make assets`")
    return path


@functools.cache
def golden_tokenizer(name):
    """A tokenizer by the name that the goldens give it (see golden/README: tokens)."""
    legacy = name.endswith("legacy_true")
    if name == "llama2_fast":
        packed = (GOLDEN / "tokenizers" / "llama2" / "tokenizer.json.xz").read_bytes()
        return JsonTokenizer(lzma.decompress(packed))
    if name.startswith("llama2"):
        path = GOLDEN / "tokenizers" / "llama2" / "tokenizer.model"
        chatml = "chatml_nobos" in name
        tokenizer = SentencePieceTokenizer.from_file(path, legacy=legacy, add_bos=not chatml)
        return tokenizer.with_tokens(["<|im_start|>", "<|im_end|>"]) if chatml else tokenizer
    if name.startswith("mistral"):
        path = asset("mistral_v1/tokenizer.model")
        return SentencePieceTokenizer.from_file(path, legacy=legacy)
    if name == "gemma_fast":
        return JsonTokenizer.from_file(asset("gemma/tokenizer.json"), pad_id=0)
    assert name in ("llama3_bos", "llama3_nobos"), name
    path, bos = asset("llama3/tokenizer.json"), name == "llama3_bos"
    return JsonTokenizer.from_file(path, add_bos=bos, pad_id=128002)


@pytest.fixture(scope="session")
def llama2():
    """The two slow LLaMA-2 tokenizers by the name that the goldens give them."""
    names = ("llama2_slow_legacy_false", "llama2_slow_legacy_true")
    return {name: golden_tokenizer(name) for name in names}


@pytest.fixture(scope="session")
def named():
    """`golden_tokenizer`: a tokenizer by the name that the goldens give it."""
    return golden_tokenizer


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A vocabulary of the kind the demo trains."""
    words = ["What digit is on the card?", "The card is red.", "A green card with a 7.", "It is 3."]
    path = tmp_path_factory.mktemp("small") / "tokenizer.model"
    return train_tokenizer(words * 5, path, vocab_size=320, legacy=False)
