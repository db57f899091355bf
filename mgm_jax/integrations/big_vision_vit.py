"""Our vision tower with the interface of big_vision's `models.vit`: `Model` and `load`, and `save`.

A config of big_vision names it by its import path (such as `img_model` in its PaliGemma configs).
The parameters are ours, {"clip": ..., "head": ...}, the numbers big_vision's. big_vision itself is
not imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mgm_jax.checkpoint import describe
from mgm_jax.convert.big_vision import read_tower
from mgm_jax.convert.big_vision_source import (
    ACT,
    HEADS,
    NORM_EPS,
    open_tower,
    resize_positions,
    tower_config,
)
from mgm_jax.convert.families.siglip import big_vision_rules
from mgm_jax.convert.npz import NpzWriter
from mgm_jax.convert.params import ParamsSource
from mgm_jax.convert.rules import export_params
from mgm_jax.convert.writers import Spec
from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.config import ClipConfig
from mgm_jax.nn.linear import Linear, fan_in_init
from mgm_jax.tree import diff, flatten, unflatten

VARIANTS = {  # width, layers, mlp, heads (arXiv 2106.04560, table 2; 2305.13035 for So400m)
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G-opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}
REMAT = {  # jax's names, which big_vision uses -> ours (nn.stack)
    "none": "none",
    "nothing_saveable": "full",
    "dots_with_no_batch_dims_saveable": "dots",
}
ONLY = {  # options of which we have one value
    "posemb": ("learn",),
    "rep_size": (False,),
    "dropout": (0.0,),
    "pool_type": ("gap", "none"),
    "remat_policy": tuple(REMAT),
}
Tower = nn.map_variables(ClipVit, "params", trans_out_fn=nn.unbox, init=True)  # plain arrays


class Vit(nn.Module):
    """big_vision's ViT: image [B, S, S, 3] from -1 to 1 -> (x, named intermediates).

    x: tokens [B, N, D] with `pool_type` "none", their mean [B, D] with "gap"; with `num_classes`,
    a linear layer of them. `out["encoded"]` is [B, N, D].
    """

    num_classes: int | None = None
    patch_size: Sequence[int] = (16, 16)
    width: int = 768
    depth: int = 12
    mlp_dim: int | None = None
    num_heads: int = 12
    posemb: str = "learn"
    rep_size: int | bool = False
    dropout: float = 0.0
    pool_type: str = "gap"
    head_zeroinit: bool = True
    scan: bool = False
    remat_policy: str = "nothing_saveable"
    dtype_mm: str = "float32"

    def config(self, image_size: int) -> ClipConfig:
        """The tower's config for pictures of that side."""
        patch, other = self.patch_size
        if patch != other:
            raise ValueError(f"patch_size is {self.patch_size}, expected a square")
        return ClipConfig(
            image_size=image_size,
            patch_size=patch,
            width=self.width,
            layers=self.depth,
            heads=self.num_heads,
            mlp_dim=self.mlp_dim or 4 * self.width,
            norm_eps=NORM_EPS,
            act=ACT,
            select_layer=-1,
            kind="siglip",
        )

    @nn.compact
    def __call__(self, image, *, train: bool = False):
        del train  # it turns dropout on, which we have none of
        n, h, w, _ = image.shape
        if h != w:
            raise ValueError(f"image is {h} x {w}, expected a square")
        remat = REMAT[self.remat_policy] if self.scan else "none"
        tower = Tower(self.config(h), scan=self.scan, remat=remat, name="clip")
        x = encoded = tower(jnp.asarray(image, self.dtype_mm))
        out = {"encoded": x}
        if self.pool_type == "gap":
            x = out["head_input"] = x.mean(axis=1)
        side = h // self.patch_size[0]
        x_2d = encoded.reshape(n, side, side, -1)
        out |= {"pre_logits": x, "pre_logits_2d": x_2d}
        if self.num_classes:
            init = nn.initializers.zeros if self.head_zeroinit else fan_in_init
            head = _Head(self.num_classes, (None, None), kernel_init=init, name="head")
            x, out["logits_2d"] = head(x), head(x_2d)
            out["logits"] = x
        return x, out


_Head = nn.map_variables(Linear, "params", trans_out_fn=nn.unbox, init=True)


def Model(num_classes: int | None = None, *, variant: str | None = None, **kw) -> Vit:  # noqa: N802
    """The module for big_vision's options; `variant` is such as "B" or "So400m/14".

    ValueError for a variant, an option or a value that we do not have.
    """
    sizes = {}
    if variant is not None:
        name, _, patch = variant.partition("/")
        if name not in VARIANTS or not (patch or "1").isdigit():
            raise ValueError(f"variant is {variant!r}, expected one of {list(VARIANTS)} or B/16")
        sizes = dict(zip(("width", "depth", "mlp_dim", "num_heads"), VARIANTS[name], strict=True))
        sizes |= {"patch_size": (int(patch), int(patch))} if patch else {}
    known = set(Vit.__dataclass_fields__) - {"parent", "name"}
    if unknown := sorted(set(kw) - known):
        raise ValueError(f"unknown option {unknown[0]!r}, expected one of {sorted(known)}")
    for option, values in ONLY.items():
        if option in kw and kw[option] not in values:
            raise ValueError(f"{option} is {kw[option]!r}, expected one of {values}")
    return Vit(num_classes, **sizes | kw)


def load(
    init_params: Mapping | None,
    init_file: str,
    model_cfg: Mapping | None = None,
    dont_load: Sequence[str] = (),
) -> dict[str, Any]:
    """Parameters from `file.npz`, `file.npz:img` or a directory of ours, as `Vit` names them.

    Names that a regex of `dont_load` matches come from `init_params`; positions are resized to
    its grid. `model_cfg` is only there because big_vision gives it: it tells scan from loop, which
    are the same parameters here. ValueError with all differences in names and shapes.
    """
    del model_cfg
    loaded = _read(init_file)
    if init_params is None:
        kept = {n: a for n, a in loaded.items() if not _matches(n, dont_load)}
        return unflatten(kept)
    init = flatten(init_params)
    name = "clip/positions"
    if name in init and name in loaded:
        loaded[name] = _fit(loaded[name], len(init[name]))
    expected, found = (
        {n: a for n, a in flat.items() if not _matches(n, dont_load)} for flat in (init, loaded)
    )
    if lines := diff(expected, found):
        raise ValueError(f"{init_file} does not fit the model:\n  " + "\n  ".join(lines))
    return unflatten({n: found.get(n, value) for n, value in init.items()})


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _read(init_file: str) -> dict[str, np.ndarray]:
    if (Path(init_file) / "mgm.json").exists():
        describe(init_file)
        source = ParamsSource(Path(init_file) / "params")
        return {n: source.read(n) for n in source if n.startswith("clip/")}
    tower = open_tower(init_file)
    cfg = tower_config(tower, select_layer=-1)
    heads = {n: tower.read(n) for n in tower if _matches(n, HEADS)}
    return flatten(read_tower(tower, cfg)) | heads


def _fit(positions: np.ndarray, count: int) -> np.ndarray:
    """[M, D] -> [count, D] if both are square grids; else as it is."""
    m, n = math.isqrt(len(positions)), math.isqrt(count)
    if m == n or m * m != len(positions) or n * n != count:
        return positions
    resized = resize_positions(positions.reshape(m, m, -1), n)
    return resized.reshape(count, -1).astype(positions.dtype)


def save(model: Vit, params: Mapping, file: str | Path, *, layout: str = "loop") -> None:
    """Writes parameters of `model` as a `.npz` that big_vision's own ViT loads."""
    flat = {n: np.asarray(a) for n, a in flatten(params).items()}
    patch, grid = model.patch_size[0], math.isqrt(len(flat["clip/positions"]))
    tensors = dict(export_params(flat, big_vision_rules(model.config(grid * patch))))
    tensors |= {n: a for n, a in flat.items() if n.startswith("head/")}
    specs = {n: Spec(n, a.shape, a.dtype) for n, a in tensors.items()}
    writer = NpzWriter(Path(file), list(specs.values()), scan=layout == "scan")
    writer.write((spec, tensors[spec.name]) for spec in writer.order())
