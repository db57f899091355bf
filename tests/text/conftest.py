import pathlib

import pytest

from mgm_jax.text import SentencePieceTokenizer, train_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def llama2():
    """The two slow LLaMA-2 tokenizers by the name that the goldens give them."""
    path = GOLDEN / "tokenizers" / "llama2" / "tokenizer.model"
    return {
        f"llama2_slow_legacy_{str(legacy).lower()}": SentencePieceTokenizer.from_file(
            path, legacy=legacy
        )
        for legacy in (False, True)
    }


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A vocabulary of the kind the demo trains."""
    words = ["What digit is on the card?", "The card is red.", "A green card with a 7.", "It is 3."]
    path = tmp_path_factory.mktemp("small") / "tokenizer.model"
    return train_tokenizer(words * 5, path, vocab_size=320, legacy=False)
