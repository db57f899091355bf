"""A model directory -> the same model quantised; memory for one plain matrix (stack) at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from etils import epath

from mgm_jax.checkpoint import (
    Checkpoint,
    describe,
    load_some,
    place,
    refuse_quantized,
    save_checkpoint,
    stored_shapes,
    whole_model,
)
from mgm_jax.ops import quant
from mgm_jax.quantize.config import QuantConfig
from mgm_jax.quantize.params import matched, quantize_one
from mgm_jax.text import load_tokenizer
from mgm_jax.tree import nbytes, unflatten


def quantize_directory(
    src: epath.PathLike, dst: epath.PathLike, config: QuantConfig, say=lambda text: None
) -> dict:
    """Writes `src`, a whole model of ours, quantised to `dst`.

    Returns {"scheme", "group", "bytes": [before, after] of all parameters, "error": name -> the
    matrix's relative error in the Frobenius norm}. CheckpointError for a source that is no whole
    model, or is quantised; ValueError as of `params.matched`.
    """
    src, cfg, description = place(src), whole_model(src), describe(src)
    refuse_quantized(src, description)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = {
        n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here)
        for n, s in stored_shapes(src).items()
    }
    targets, params, errors = matched(shapes, config), {}, {}
    for name, shape in shapes.items():
        array = load_some(src, {name: shape})[name]
        if name not in targets:
            params[name] = array
            continue
        made = quantize_one(name, array, config)
        errors[name] = float(_error(array, quant.Quantized(*made.values(), config.scheme)))
        params |= made
        say(f"{name}: error {errors[name]:.2%}")
    provenance = description["provenance"] | {"quantized_from": str(src)}
    folder = description["tokenizer"]
    tokenizer = load_tokenizer(src / folder) if folder else None
    template = description["template"]
    checkpoint = Checkpoint(cfg, unflatten(params), tokenizer, template, provenance, config)
    save_checkpoint(dst, checkpoint)
    sizes = [sum(nbytes(a.shape, a.dtype) for a in x.values()) for x in (shapes, params)]
    return {"scheme": config.scheme, "group": config.group, "bytes": sizes, "error": errors}


@jax.jit
def _error(w, q: quant.Quantized):
    """|w - q| / |w| over a stack, a layer at a time."""

    def one(pair):
        w, q = pair
        w = w.astype(jnp.float32)
        return jnp.sum((w - quant.dequantize(q)) ** 2), jnp.sum(w**2)

    off, whole = jax.lax.map(one, (w, q)) if w.ndim > 2 else one((w, q))
    return jnp.sqrt(jnp.sum(off) / jnp.sum(whole))
