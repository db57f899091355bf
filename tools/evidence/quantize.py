"""Errors of quantised matrices beside bitsandbytes' and torchao's -> docs/evidence/quantize.json.

`python -m tools.evidence.quantize`: seconds on a CPU. `pip install bitsandbytes torchao` for the
others' columns; what is not there is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mgm_jax.ops import quant

OUT = Path(__file__).parents[2] / "docs" / "evidence" / "quantize.json"
INPUTS, OUTPUTS, ROWS = 1024, 512, 64
CASES = [("int8", 0), ("int4", 0), ("int4", 64), ("int4", 32), ("nf4", 64)]  # (scheme, group)


def ours(w: np.ndarray, scheme: str, group: int) -> np.ndarray:
    """[in, out] -> what the quantised matrix stands for."""
    return np.asarray(quant.dequantize(quant.quantize(jnp.asarray(w), scheme, group)))


def bitsandbytes(w: np.ndarray, scheme: str, group: int) -> np.ndarray | None:
    """NF4 by blocks along the inputs, and int8 by rows of torch's layout."""
    import bitsandbytes.functional as bnb
    import torch

    theirs = torch.from_numpy(w.T.copy())
    if scheme == "nf4":
        values, state = bnb.quantize_4bit(theirs, quant_type="nf4", blocksize=group)
        return bnb.dequantize_4bit(values, state).float().numpy().T
    if scheme == "int8":
        values, scale, _ = bnb.int8_vectorwise_quant(theirs.half())
        return (values.float() * scale[:, None].float() / 127).numpy().T
    return None


def torchao(w: np.ndarray, scheme: str, group: int) -> np.ndarray | None:
    """Weight-only integers, by channel or by group."""
    import torch
    from torchao import quantization as ao
    from torchao.quantization.granularity import PerAxis, PerGroup

    if scheme == "nf4":
        return None
    model = torch.nn.Sequential(torch.nn.Linear(*w.shape, bias=False))
    model[0].weight.data = torch.from_numpy(w.T.copy())
    granularity = PerGroup(group) if group else PerAxis(0)
    dtype = getattr(torch, scheme)
    ao.quantize_(model, ao.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity))
    with torch.no_grad():
        return model(torch.eye(len(w))).numpy()


def error(w: np.ndarray, found: np.ndarray | None, x: np.ndarray) -> float | None:
    """Relative, of the products with x, in the Frobenius norm."""
    if found is None:
        return None
    return round(float(np.linalg.norm(x @ (found - w)) / np.linalg.norm(x @ w)), 5)


def attempt(make: Callable, *args) -> np.ndarray | None:
    try:
        return make(*args)
    except ImportError:
        return None


def main() -> None:
    rng = np.random.default_rng(0)
    w = (0.02 * rng.normal(size=(INPUTS, OUTPUTS))).astype(np.float32)
    x = rng.normal(size=(ROWS, INPUTS)).astype(np.float32)
    rows = []
    for scheme, group in CASES:
        row = {"scheme": scheme, "group": group}
        for make in (ours, bitsandbytes, torchao):
            row[make.__name__] = error(w, attempt(make, w, scheme, group), x)
        rows.append(row)
        print(row)
    known = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    versions = {n: known[n] for n in ("jax", "torch", "bitsandbytes", "torchao") if n in known}
    found = {"matrix": [INPUTS, OUTPUTS], "relative_output_error": rows, "versions": versions}
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
