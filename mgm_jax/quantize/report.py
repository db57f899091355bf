"""What quantisation costs: a model and its quantised copy on the same records."""

from __future__ import annotations

import math
from collections.abc import Sequence

from etils import epath

from mgm_jax.api import load
from mgm_jax.data.records import Record
from mgm_jax.held_out import measure


def compare(
    plain: epath.PathLike,
    quantized: epath.PathLike,
    records: Sequence[Record],
    *,
    length: int = 2048,
    dtype: str = "bfloat16",
) -> dict:
    """{"records", "tokens", "perplexity": [before, after], "perplexity_ratio", "same_token": how
    often both find the same token most likely}: over the answers of the records. The models are in
    memory one after the other."""
    (before, count, one), (after, _, other) = (
        measure(load(directory, dtype=dtype), records, length) for directory in (plain, quantized)
    )
    return {
        "records": len(records),
        "tokens": count,
        "perplexity": [math.exp(before), math.exp(after)],
        "perplexity_ratio": math.exp(after - before),
        "same_token": float((one == other).mean()),
    }
