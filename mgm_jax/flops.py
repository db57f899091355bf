"""Useful floating-point operations of a training step: what MFU counts.

Two a multiply-add; causal attention is half of the square over the whole row; mining is counted as
re-associated (ops.mining). Recomputation, empty picture slots and padding to tiles do not count.
"""

from __future__ import annotations

from mgm_jax.models.config import ClipConfig, ConvNextConfig, DecoderConfig, MgmConfig


def decoder(cfg: DecoderConfig, length: int) -> float:
    """Forward, of one row of `length` tokens, with the head."""
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    mlp, router = 3 * cfg.dim * cfg.mlp_dim, 0
    if cfg.experts:
        mlp, router = mlp * cfg.experts.per_token, cfg.dim * cfg.experts.count
    layer = 2 * cfg.dim * (q + kv) + mlp + router  # weights that a token meets
    attention = 2 * length * q  # two products, half of the square
    return length * (cfg.layers * (2 * layer + attention) + 2 * cfg.dim * cfg.vocab_size)


def clip(cfg: ClipConfig) -> float:
    """Forward, of one view."""
    n, d = cfg.grid**2 + (cfg.kind != "siglip"), cfg.width
    layer = 2 * n * (4 * d * d + 2 * d * cfg.mlp_dim) + 4 * n * n * d
    return cfg.layers_run * layer + 2 * cfg.grid**2 * 3 * cfg.patch_size**2 * d


def convnext(cfg: ConvNextConfig, side: int) -> float:
    """Forward, of one picture of `side` x `side` pixels."""
    total, below, patch, cells = 0.0, 3, cfg.patch_size, side
    for width, depth in zip(cfg.widths, cfg.depths, strict=True):
        cells //= patch
        total += 2 * cells**2 * patch**2 * below * width
        total += depth * 2 * cells**2 * (8 * width * width + cfg.kernel_size**2 * width)
        below, patch = width, 2
    return total


def mining(cfg: MgmConfig) -> float:
    """Forward, of one picture, re-associated."""
    n, c = cfg.visual_tokens, cfg.clip.width
    channels = cfg.convnext.channels
    cells = (cfg.image.hr_size // cfg.convnext.patch_size) ** 2
    return 2 * n * (c * c + 2 * c * channels) + 4 * cells * channels


def picture(cfg: MgmConfig) -> dict[str, float]:
    """Forward, of one picture, by module: clip, convnext, mining, projector."""
    out = {"clip": clip(cfg.clip) * cfg.image.crops}
    if cfg.convnext:
        out |= {"convnext": convnext(cfg.convnext, cfg.image.hr_size), "mining": mining(cfg)}
    width, dim = cfg.clip.width, cfg.llm.dim
    return out | {"projector": 2 * cfg.visual_tokens * (width * dim + dim * dim)}


def step(cfg: MgmConfig, *, rows: int, length: int, pictures: float, trained) -> float:
    """Of a training step on `pictures` filled slots; `trained`: modules (llm, clip, ...) that move.

    A trained module costs its forward three times. A frozen one that gradients pass through, as the
    language model does in stage 1, costs it twice; a frozen tower once.
    """
    total = rows * decoder(cfg.llm, length) * (3 if "llm" in trained else 2)
    for name, forward in picture(cfg).items():
        total += pictures * forward * (3 if name in trained else 1)
    return total
