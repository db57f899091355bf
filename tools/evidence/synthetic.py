"""Full-size checkpoints in the original's layout: right names and shapes, meaningless numbers.

Shapes come from the model at full size under `eval_shape`, names from the converter's tables. The
numbers are one block of random ones over and over, which starts elsewhere in every tensor.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from mgm_jax.convert.extents import Extent, TensorSource
from mgm_jax.convert.families import mgm
from mgm_jax.convert.hf_config import hf_config
from mgm_jax.convert.plan import export_specs
from mgm_jax.convert.writers import Spec, header, plan_shards
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import abstract_model
from mgm_jax.tree import flatten

BLOCK = 16_777_259  # numbers: a prime, so that no two tensors of a layer agree
STEP = 7_368_787  # numbers between the starts of two tensors
DTYPE = np.dtype(ml_dtypes.bfloat16)


def specs_of(cfg: MgmConfig) -> list[Spec]:
    """Every tensor of the original's checkpoint of such a model, in bfloat16."""
    shapes = flatten(abstract_model(cfg)[2])
    extents = {n: Extent(Path(), 0, tuple(a.shape), DTYPE) for n, a in shapes.items()}
    return export_specs(TensorSource(extents, "the model"), mgm.rules(cfg), None)[0]


def narrow(cfg: MgmConfig, layers: int) -> MgmConfig:
    """A LLaMA's Mini-Gemini, a quarter as wide, with some of the language model's layers."""
    clip, llm = cfg.clip, cfg.llm
    fewer = {"width": clip.width // 4, "heads": clip.heads // 4, "mlp_dim": clip.mlp_dim // 4}
    smaller = {"dim": llm.dim // 4, "mlp_dim": llm.mlp_dim // 4, "layers": layers}
    heads = {"heads": llm.heads // 4, "kv_heads": llm.kv_heads // 4}
    return dataclasses.replace(
        cfg,
        clip=dataclasses.replace(clip, **fewer),
        convnext=dataclasses.replace(
            cfg.convnext, widths=tuple(n // 4 for n in cfg.convnext.widths)
        ),
        llm=dataclasses.replace(llm, **smaller, **heads),
    )


def write_checkpoint(
    cfg: MgmConfig, directory: Path, *, shard_size: int = 5 * 10**9, sparse: bool = False
) -> int:
    """Writes config.json, shards and index into a new directory; returns the bytes of the tensors.

    `sparse`: the files have their full sizes, but no data on disk (they read as zeros).
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(hf_config(cfg), indent=2) + "\n")
    shards = plan_shards(specs_of(cfg), shard_size)
    # Random bits but for the upper one of the exponent: a finite number of either sign, in
    # float16 and in bfloat16.
    bits = np.random.default_rng(0).integers(0, 2**16, BLOCK, dtype=np.uint16) & 0xBFFF
    block, count, where = memoryview(bits.view(np.uint8)), 0, {}
    for i, shard in enumerate(shards):
        file = directory / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        with open(file, "wb") as stream:
            stream.write(header(shard))
            for spec in shard:
                where[spec.name], count = file.name, count + 1
                at, left = 2 * (count * STEP % BLOCK), spec.nbytes
                while left and not sparse:
                    part = block[at : at + left]
                    left, at = left - stream.write(part), 0
            if sparse:
                stream.truncate(stream.tell() + sum(s.nbytes for s in shard))
    total = sum(s.nbytes for shard in shards for s in shard)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total
