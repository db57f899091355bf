"""Tokenizer, config and embedding rows against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mgm_jax.convert import hf
from mgm_jax.convert.checkpoints import EMBED, HEAD
from mgm_jax.doctor.finding import Finding, error, ok


def vocabulary(directory: Path, config: Mapping, tensors: Mapping) -> Iterator[Finding]:
    """Of a directory of the original with a language model (its tensors may not be readable)."""
    size, rows, head = config.get("vocab_size"), *(_rows(tensors, n) for n in (EMBED, HEAD))
    if None not in (rows, size) and rows != size:
        yield error(
            f"{EMBED} has {rows} rows, but config.json's vocab_size is {size}",
            "tokens were added (mm_use_im_start_end, a pad token) or cut without saving the config",
            f'set "vocab_size": {rows} in config.json, if the tokenizer has that many tokens',
        )
    if None not in (rows, head) and head != rows:
        yield error(
            f"{HEAD} has {head} rows, but {EMBED} has {rows}",
            "the vocabulary was resized in one of the two alone, or the shards are of two models",
            "download both shards of one revision, or export the model again",
        )
    try:
        tokenizer = hf.read_tokenizer(directory)
    except (ValueError, OSError, KeyError) as e:
        yield error(e, "a damaged tokenizer file", "download it again")
        return
    if tokenizer is None:
        yield error(
            "no tokenizer (neither tokenizer.model nor tokenizer.json)",
            "only the weights were downloaded or saved",
            "copy tokenizer.model (or tokenizer.json) and tokenizer_config.json of the language "
            "model that it was trained from into the directory",
        )
        return
    yield from pieces(tokenizer, rows or size)


def pieces(tokenizer, rows: int | None) -> Iterator[Finding]:
    """A tokenizer's size against the embedding's rows."""
    kind = type(tokenizer).__name__
    if rows and tokenizer.vocab_size > rows:
        yield error(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {rows} rows",
            "another model's tokenizer, or tokens added to it alone",
            "use the tokenizer that the model was trained with",
        )
    else:
        yield ok(f"tokenizer: {kind}, {tokenizer.vocab_size} tokens, embedding of {rows} rows")


def _rows(tensors: Mapping, name: str) -> int | None:
    return tensors[name].shape[0] if name in tensors and tensors[name].shape else None
