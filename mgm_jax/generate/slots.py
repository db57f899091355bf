"""Rows of a KV cache that answers are written in, and the compiled programs that write them.

B slots of S tokens, n prompts that are read at a time, T tokens of a prompt (right-padded), V
vocabulary. A slot's settings are data, so that one program serves all kinds of requests; programs
are compiled once a shape, and their state is donated.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mgm_jax.generate.sampling import request_keys, sample, step_keys, top_two_margin
from mgm_jax.models.decoder import cache_spec, empty_cache
from mgm_jax.models.mgm import Mgm


class Settings(NamedTuple):
    """How rows are drawn (`sampling.Sampling`), each [B]; `left`: tokens still to be drawn."""

    key: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    left: jax.Array


class Slots(NamedTuple):
    """The state of all slots, each [B]: the newest token, the slot of the cache where it goes,
    which is its position, and how many tokens of the answer there are."""

    cache: tuple
    token: jax.Array
    position: jax.Array
    step: jax.Array
    settings: Settings


class Drawn(NamedTuple):
    """Tokens (-1 where none was drawn), their log-probabilities, and the margins of their steps."""

    token: jax.Array
    logprob: jax.Array
    margin: jax.Array


def empty_slots(model: Mgm, count: int, length: int, mesh: Mesh | None = None) -> Slots:
    """Slots without requests; on a mesh, slots are split over the batch axes, and key heads over
    the tensor axis where they divide."""

    def make():
        numbers = jnp.zeros(count, jnp.int32)
        ones = jnp.ones(count, jnp.float32)
        settings = Settings(request_keys(numbers, numbers), ones, ones, numbers, numbers)
        cache = empty_cache(model.cfg.llm, count, length, jnp.dtype(model.dtype))
        return Slots(cache, numbers, numbers, numbers, settings)

    if mesh is None:
        return jax.jit(make)()
    cached = NamedSharding(mesh, cache_spec(model.cfg.llm, mesh.shape["tensor"]))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda _: whole, jax.eval_shape(make))
    placed = placed._replace(cache=jax.tree.map(lambda _: cached, placed.cache))
    return jax.jit(make, out_shardings=placed)()


@functools.partial(jax.jit, static_argnames="model")
def look(params, images, *, model: Mgm):
    """Pictures [P, H, W, 3] uint8 -> their visual tokens [P, N, D]."""
    return model.apply({"params": params}, images, method="look")


@functools.partial(jax.jit, static_argnames="model")
def embed(params, batch, *, model: Mgm):
    """`tokens`, `visual_index` [n, T], and `visual` [1, M, N, D] where there are pictures -> input
    embeddings [n, T, D]. By itself, so that `read` is not compiled again for each M."""
    return model.apply({"params": params}, batch, method="input_embeddings")[0]


@functools.partial(jax.jit, static_argnames="model", donate_argnames="slots")
def read(params, slots: Slots, batch, rows, *, model: Mgm):
    """Reads prompts into slots `rows` [n] -> (slots, logits after each prompt [n, V]).

    `batch`: `embeddings` [n, T, D], `positions` and `segments` [n, T]. Rows beyond the last slot
    are padding.
    """
    logits, kv = model.apply({"params": params}, batch, method="read")
    t = batch["positions"].shape[1]
    cache = tuple(
        {n: c[n].at[rows, :, :t].set(kv[n][i].astype(c[n].dtype), mode="drop") for n in c}
        for i, c in enumerate(slots.cache)
    )
    return slots._replace(cache=cache), logits


@functools.partial(jax.jit, static_argnames="model", donate_argnames="slots")
def read_on(params, slots: Slots, batch, rows, *, model: Mgm):
    """`read` of the rest [n, T] of prompts whose beginning is in their slots already."""
    cache = {n: jnp.stack([layer[n][rows] for layer in slots.cache]) for n in slots.cache[0]}
    logits, cache = model.apply({"params": params}, batch, cache, method="read_on")
    cache = tuple(
        {n: c[n].at[rows].set(cache[n][i], mode="drop") for n in c}
        for i, c in enumerate(slots.cache)
    )
    return slots._replace(cache=cache), logits


@functools.partial(jax.jit, static_argnames="stop", donate_argnames="slots")
def begin(slots: Slots, logits, rows, draws, *, stop):
    """Draws the first tokens of the answers to prompts that have been read -> (slots, Drawn [n]).

    `draws`: seed, number, temperature, top_p, top_k of each, its `position`, which is the length of
    its prompt, and `left`, the tokens of its answer at most, all [n].
    """
    key = request_keys(draws["seed"], draws["number"])
    settings = Settings(key, **{n: draws[n] for n in Settings._fields if n != "key"})
    drawn = _draw(logits, settings, jnp.zeros_like(rows))
    left = jnp.where(_is_stop(drawn.token, stop), 0, settings.left - 1)
    after = Slots(
        slots.cache,
        drawn.token,
        draws["position"],
        jnp.ones_like(rows),
        settings._replace(left=left),
    )
    put = functools.partial(jax.tree.map, lambda old, new: old.at[rows].set(new, mode="drop"))
    state = put(slots._replace(cache=()), after._replace(cache=()))
    return state._replace(cache=slots.cache), drawn


@functools.partial(jax.jit, static_argnames=("model", "stop", "most"), donate_argnames="slots")
def decode(params, slots: Slots, alive, steps, eager, *, model: Mgm, stop, most: int):
    """Up to `steps` (at most the static `most`) tokens for each slot of `alive` [B] bool that has
    any left -> (slots, Drawn [B, most], steps taken).

    With `eager`, it leaves as soon as a slot ends, because another request waits for one.
    """
    settings = slots.settings
    slots = slots._replace(settings=settings._replace(left=jnp.where(alive, settings.left, 0)))
    total = slots.cache[0]["k"].shape[2]
    b = len(alive)
    out = Drawn(jnp.full((b, most), -1, jnp.int32), *2 * [jnp.zeros((b, most), jnp.float32)])
    begun = (slots.settings.left > 0).sum()

    def go_on(carry):
        i, slots, _ = carry
        active = (slots.settings.left > 0).sum()
        return (i < steps) & (active > 0) & ~(eager & (active < begun))

    def advance(carry):
        i, slots, out = carry
        active = slots.settings.left > 0
        # A slot at rest writes where no prompt or answer reads before it has been written again.
        mask = jnp.arange(total) <= slots.position[:, None]
        step = (slots.token, slots.position, mask, slots.cache, slots.position)
        logits, cache = model.apply({"params": params}, *step, method="decode")
        drawn = _draw(logits, slots.settings, slots.step)
        drawn = drawn._replace(token=jnp.where(active, drawn.token, -1))
        left = jnp.where(_is_stop(drawn.token, stop), 0, slots.settings.left - active)
        slots = Slots(
            cache,
            jnp.where(active, drawn.token, slots.token),
            slots.position + active,
            slots.step + active,
            slots.settings._replace(left=left),
        )
        return i + 1, slots, jax.tree.map(lambda o, d: o.at[:, i].set(d), out, drawn)

    i, slots, out = jax.lax.while_loop(go_on, advance, (jnp.int32(0), slots, out))
    return slots, out, i


def _draw(logits, settings: Settings, step) -> Drawn:
    keys = step_keys(settings.key, step)
    drawn = sample(logits, keys, settings.temperature, settings.top_p, settings.top_k)
    return Drawn(*drawn, top_two_margin(logits))


def _is_stop(token, stop: tuple[int, ...]):
    return jnp.isin(token, jnp.asarray(stop, jnp.int32))


@functools.partial(jax.jit, static_argnames="length")
def copy_out(slots: Slots, row, *, length: int):
    """The first `length` tokens of a slot: {"k", "v"} [L, K, length, H]."""
    return {n: jnp.stack([c[n][row, :, :length] for c in slots.cache]) for n in ("k", "v")}


@functools.partial(jax.jit, donate_argnames="slots")
def copy_in(slots: Slots, row, kv):
    """Writes what `copy_out` gave into the first tokens of a slot."""
    length = kv["k"].shape[2]
    cache = tuple(
        {n: c[n].at[row, :, :length].set(kv[n][i]) for n in c} for i, c in enumerate(slots.cache)
    )
    return slots._replace(cache=cache)
