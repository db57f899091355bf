"""The serving path on a slice: reading prompts (prefill), then one token of each answer (decode).

Weights lie in the compute dtype, split over `tensor`; requests are split over `data`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from mgm_jax import flops, sharding, xla_flags
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.decoder import cache_spec, empty_cache, unstack
from mgm_jax.ops.mesh import BATCH_AXES
from mgm_jax.plan.compile import Compiled
from mgm_jax.plan.job import Part, Serve
from mgm_jax.plan.report import TIMED, memory, timed, timings
from mgm_jax.program import abstract_run, quant_config
from mgm_jax.quantize.config import NAME
from mgm_jax.topologies import Topology
from mgm_jax.tree import flatten, unflatten


def mesh_shape(config: ConfigDict, cfg: MgmConfig, place: Topology, requests: int) -> dict:
    """The config's mesh if it splits by `tensor`; else `tensor` as far as the heads divide in a
    slice, then `data`.

    ValueError where the requests do not divide by what is left.
    """
    shape = dict(config.mesh.to_dict())
    if shape.get("tensor", 1) == 1:
        tensor = math.gcd(cfg.llm.heads, place.chips // place.slices)
        shape = {"data": place.chips // tensor, "fsdp": 1, "expert": 1, "tensor": tensor}
    parts = math.prod(shape.get(axis, 1) for axis in BATCH_AXES)
    if parts < 1 or requests % parts:
        raise ValueError(
            f"--batch is {requests}, expected a multiple of {abs(parts)}: the mesh {shape} splits "
            "requests in so many parts; take a smaller slice, or more requests"
        )
    return shape


def parts(config: ConfigDict, cfg: MgmConfig, mesh, serve: Serve) -> list[Part]:
    """Prefill and a step of decoding on a mesh."""
    dtype = jnp.dtype(config.dtype)
    options = {"dtype": config.dtype, "scan": config.scan}
    model, _, shapes, axes = abstract_run(cfg, quant=quant_config(config), **options)
    flat = flatten(shapes)
    placed = flatten(sharding.param_shardings(shapes, axes, mesh))
    dtypes = {n: s.dtype if NAME.fullmatch(n) else dtype for n, s in flat.items()}
    params = unflatten(
        {n: ShapeDtypeStruct(s.shape, dtypes[n], sharding=placed[n]) for n, s in flat.items()}
    )
    rows = sharding.batch_sharding(mesh)
    groups = sharding.batch_shards(mesh)
    size, b, t = cfg.image.hr_size, serve.batch, serve.prompt
    n = serve.read or b
    if n % groups:
        raise ValueError(f"--read is {n}, expected a multiple of the mesh's {groups} parts")
    names = ("tokens", "positions", "segments", "visual_index")
    batch = {name: ShapeDtypeStruct((n, t), jnp.int32, sharding=rows) for name in names}
    images = (groups, n // groups, size, size, 3)
    batch["images"] = ShapeDtypeStruct(images, jnp.uint8, sharding=rows)
    spec = NamedSharding(mesh, cache_spec(cfg.llm, mesh.shape["tensor"]))
    cache = jax.eval_shape(lambda: empty_cache(cfg.llm, b, t + serve.new, dtype))
    cache = jax.tree.map(lambda s: ShapeDtypeStruct(s.shape, s.dtype, sharding=spec), cache)
    out = (rows, jax.tree.map(lambda s: s.sharding, cache))
    jit = functools.partial(jax.jit, out_shardings=out, compiler_options=xla_flags.options(mesh))

    @functools.partial(jit, donate_argnums=2)
    def prefill(params, batch, cache, row):
        logits, kv = model.apply({"params": params}, batch, method="read")
        layers = zip(cache, unstack(kv, cfg.llm.layers), strict=True)
        return logits, tuple(jax.tree.map(functools.partial(write, row), *pair) for pair in layers)

    def write(row, old, new):  # [B, K, S, H], [n, K, T, H]: rows from `row` on
        return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (row, 0, 0, 0))

    @functools.partial(jit, donate_argnums=3)
    def decode(params, tokens, positions, cache):
        # Each row is at a place of its own, as in an engine's slots.
        mask = jnp.arange(t + serve.new) <= positions[:, None]
        step = (tokens, positions, mask, cache, positions)
        return model.apply({"params": params}, *step, method="decode")

    tokens = ShapeDtypeStruct((b,), jnp.int32, sharding=rows)
    row = ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    # A token reads the whole decoder, but rows alone of an embedding that is not its head too.
    aside = {n: x for n, x in params.items() if n != "llm"}
    decoder = dict(params["llm"])
    if not cfg.llm.tied_embeddings:
        aside["embed"] = decoder.pop("embed")
    kinds = (("decoder", decoder), ("towers and embedding", aside), ("cache", cache))
    return [
        Part("prefill", prefill, (params, batch, cache, row), (*kinds, ("batch", batch))),
        Part(
            "decode",
            decode,
            (params, tokens, tokens, cache),
            (*kinds, ("batch", (tokens, tokens))),
        ),
    ]


def report(compiled: list[Compiled], place: Topology, cfg: MgmConfig, serve: Serve) -> dict:
    """A report whose times are those of a step of decoding, and `serving`: what a user sees."""
    prefill, decode = compiled
    most = max(compiled, key=lambda c: c.peak)
    found = memory(most, place)
    found["fits"] = all(memory(c, place)["fits"] for c in compiled)
    found["compile_seconds"] = round(sum(c.seconds for c in compiled), 1)
    times = [timings(c, place) for c in compiled]
    token = serve.batch * flops.decoder(cfg.llm, 1)
    found["model_tflop_per_chip"] = round(token / place.chips / 1e12, 6)
    if None in times:
        return found | dict.fromkeys(TIMED) | {"collectives": {}}
    first, each = (t.seconds for t in times)
    reads = serve.batch // (serve.read or serve.batch)
    moved = decode.kinds["decoder"] + decode.kinds["cache"]  # bytes that a chip reads for a token
    bound = serve.batch / (moved / place.chip.bandwidth)
    found |= timed(times[1], token, place)
    found["serving"] = {
        "requests": serve.batch,
        "prompt_tokens": serve.prompt,
        "answer_tokens": serve.new,
        "time_to_first_token_seconds": round(first, 4),
        "seconds_per_token": round(each, 5),
        "tokens_per_second": round(serve.batch / each, 1),
        "tokens_per_second_per_chip": round(serve.batch / each / place.chips, 1),
        "bandwidth_bound_tokens_per_second_per_chip": round(bound / place.chips, 1),
        "answers_per_second": round(serve.batch / (first * reads + serve.new * each), 3),
    }
    return found
