"""Many prompts in batches: the same program on all hosts, each with its own rows.

B rows of a batch, G groups of B/G neighbouring rows (one for each shard of the batch axes), T
prompt tokens (right-padded), S = T + new cache slots, V vocabulary. Decoded tokens share cache
slots T, T + 1, ... across the batch; positions are each row's own, so padding changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mgm_jax import sharding
from mgm_jax.data.examples import Example, batch_rows
from mgm_jax.data.images import ImageError, load_image, to_hr
from mgm_jax.data.pipeline import ahead
from mgm_jax.generate.beams import beam_search
from mgm_jax.generate.sampling import Sampling, request_keys, sample, step_keys, top_two_margin
from mgm_jax.models.config import DecoderConfig, ImageSpec
from mgm_jax.models.decoder import cache_spec, empty_cache, for_decoding
from mgm_jax.models.mgm import Mgm
from mgm_jax.ops import mesh as axes

TEXT = ("tokens", "positions", "segments", "visual_index")  # what a prompt's batch has of text


@functools.partial(jax.jit, static_argnames=("model", "new", "stop"))
def continuations(model: Mgm, params, batch, draws=None, *, new: int, stop: tuple[int, ...]):
    """Prompts of the batch contract -> (continuations [B, new] int32, margins [B] float32).

    A row ends with the first id of `stop` (kept); what follows is -1. `draws`: temperature, top_p,
    top_k, seed and number of each row, all [B] (`sampling`); without, the most likely ids are
    taken. A margin is the least distance of the two best logits over the steps of its row. A row
    without tokens is padding, and never waited for.
    """
    lengths = (batch["segments"] > 0).sum(-1)  # [B]
    b, t = batch["segments"].shape
    cfg = model.cfg.llm
    cache = split_cache(cfg, empty_cache(cfg, b, t + new, jnp.dtype(model.dtype)))
    logits, cache = model.apply({"params": params}, batch, cache, method="prefill")
    keys = draws and request_keys(draws["seed"], draws["number"])
    step = {"params": for_decoding(params, model.cfg.llm.layers)}
    decode = functools.partial(model.apply, step, method="decode")
    slots = jnp.arange(t + new)
    prompt = slots < lengths[:, None]  # [B, S]

    def is_stop(token):
        return jnp.isin(token, jnp.asarray(stop, jnp.int32)) if stop else jnp.zeros(b, bool)

    def choose(logits, step):
        if draws is None:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        draw = (draws["temperature"], draws["top_p"], draws["top_k"])
        return sample(logits, step_keys(keys, step), *draw)[0]

    def advance(carry):
        i, token, done, tokens, margins, cache = carry
        mask = prompt | ((slots >= t) & (slots <= t + i))
        logits, cache = decode(token, lengths + i, mask, cache, t + i)
        token = choose(logits, i + 1)
        margins = jnp.where(done, margins, jnp.minimum(margins, top_two_margin(logits)))
        tokens = tokens.at[:, i + 1].set(jnp.where(done, -1, token))
        return i + 1, token, done | is_stop(token), tokens, margins, cache

    token, done = choose(logits, 0), lengths == 0
    tokens = jnp.full((b, new), -1, jnp.int32).at[:, 0].set(jnp.where(done, -1, token))
    carry = (jnp.int32(0), token, done | is_stop(token), tokens, top_two_margin(logits), cache)
    carry = jax.lax.while_loop(lambda c: (c[0] < new - 1) & ~c[2].all(), advance, carry)
    return split_rows(carry[3]), split_rows(carry[4])


def greedy(model: Mgm, params, batch, *, new: int, stop: tuple[int, ...]):
    """The most likely continuations [B, new] of `continuations`."""
    return continuations(model, params, batch, new=new, stop=stop)[0]


@functools.partial(jax.jit, static_argnames=("model", "new", "stop", "beams"))
def searched(model: Mgm, params, batch, draws=None, *, new: int, stop, beams: int):
    """`continuations` by `beams.beam_search`; margins are NaN."""
    keys = draws and request_keys(draws["seed"], draws["number"])
    settings = {n: draws[n] for n in ("temperature", "top_p", "top_k")} if draws else {}
    how = {"new": new, "stop": stop, "beams": beams}
    tokens = beam_search(model, params, batch, keys=keys, **how, **settings)
    return split_rows(tokens), split_rows(jnp.full(len(tokens), jnp.nan))


def draws_of(sampling: Sampling, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """The `draws` of rows that share their settings, and have these numbers."""
    kinds = {"temperature": np.float32, "top_p": np.float32, "top_k": np.int32, "seed": np.uint32}
    rows = len(numbers)
    found = {n: np.full(rows, getattr(sampling, n), kind) for n, kind in kinds.items()}
    return found | {"number": np.asarray(numbers, np.uint32)}


def split_rows(x):
    """x [B, ...] with its rows, and nothing else, split over the mesh in context."""
    if axes.axis_size(*axes.AXES) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes.BATCH_AXES))


def split_cache(cfg: DecoderConfig, cache):
    """A KV cache as `cache_spec` lays it on the mesh in context."""
    if axes.axis_size(*axes.AXES) == 1:
        return cache
    spec = cache_spec(cfg, axes.axis_size("tensor"))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), cache)


# -------------------------------------------------------------------------------------- the batches


@dataclasses.dataclass(frozen=True)
class Rows:
    """A batch to come: prompts `members`, rows of `length` tokens, `slots` pictures for each."""

    members: tuple[int, ...]
    length: int
    slots: int


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What a prompt is continued by: ids, the one that ended it included, and the least margin
    (None after a beam search); `error`: why it is not."""

    ids: tuple[int, ...]
    margin: float | None
    error: str | None = None


def bucket(length: int, step: int) -> int:
    """The next of the lengths that compile: multiples of `step`, or of an eighth of the power of
    two below where that is more. So an octave has at most eight shapes."""
    step = max(step, 2 ** max(length - 1, 1).bit_length() // 16)
    return -(-length // step) * step


def plan(prompts: Sequence[Example], batch: int, window: int, step: int) -> list[Rows]:
    """Prompts in batches of `batch`: sorted by length within windows of so many batches, the
    longest first, so that what does not fit in memory fails at the start. `step`: see `bucket`."""
    found = []
    for start in range(0, len(prompts), batch * window):
        inside = range(start, min(start + batch * window, len(prompts)))
        order = sorted(inside, key=lambda i: (-len(prompts[i]), i))
        for at in range(0, len(order), batch):
            members = tuple(order[at : at + batch])
            slots = max(len(prompts[i].images) for i in members)
            found.append(Rows(members, bucket(len(prompts[members[0]]), step), slots))
    return found


def held_rows(mesh: Mesh, batch: int) -> tuple[tuple[int, ...], set[int]]:
    """(groups that this process's devices hold, rows that it reports: of the groups that no process
    before it holds). ValueError where the rows do not divide."""
    groups = sharding.batch_shards(mesh)
    if batch < 1 or batch % groups:
        raise ValueError(
            f"a batch of {batch} does not divide into the {groups} parts that the mesh splits it in"
        )
    owner: dict[int, int] = {}
    indices = sharding.batch_sharding(mesh).devices_indices_map((groups,))
    for device, (place,) in indices.items():
        for g in range(*place.indices(groups)):
            owner[g] = min(owner.get(g, device.process_index), device.process_index)
    each = batch // groups
    own = {
        row
        for g, process in owner.items()
        if process == jax.process_index()
        for row in range(g * each, (g + 1) * each)
    }
    return sharding.held_groups(mesh, groups), own


class Generator:
    """Continues prompts on a mesh. All processes take the same `plan` in the same order, each loads
    the pictures of the rows that its devices hold, and yields the rows that it reports."""

    def __init__(self, model: Mgm, params, mesh: Mesh, *, batch: int, threads: int):
        self._model, self._params, self._mesh = model, params, mesh
        self._held, self._own = held_rows(mesh, batch)
        self._batch, self._groups = batch, sharding.batch_shards(mesh)
        self._each, self._spec = batch // self._groups, model.cfg.image
        self._threads = threads

    def run(
        self,
        prompts: Sequence[Example],
        numbers: Sequence[int],
        batches: Sequence[Rows],
        *,
        sampling: Sampling,
        stop: Sequence[int],
    ) -> Iterator[tuple[Rows, dict[int, Continuation]]]:
        """For each batch its `Rows` and the continuations of this process, by member. `numbers`:
        what tells the draws of prompts apart. `stop`: ids that end a row."""
        with ThreadPoolExecutor(self._threads) as pool, jax.set_mesh(self._mesh):
            made = (self._make(prompts, rows, pool) for rows in batches)
            dispatched = (
                self._dispatch(*batch, numbers, sampling, tuple(sorted(stop)))
                for batch in ahead(made, 1)
            )
            for rows, errors, tokens, margins in ahead(dispatched, 1):
                yield rows, self._collect(rows, errors, tokens, margins)

    def _make(self, prompts, rows: Rows, pool) -> tuple[Rows, dict, list[list]]:
        """The text of the groups held here; their pictures are on their way: (member, Future)."""
        members = [*rows.members, *[None] * (self._batch - len(rows.members))]

        def example(m: int) -> Example:
            loading = ((m, pool.submit(_load, p, self._spec)) for p in prompts[m].images)
            return dataclasses.replace(prompts[m], images=tuple(loading))

        arrays, pictures = batch_rows(
            [[] if m is None else [example(m)] for m in self._here(members)],
            length=rows.length,
            groups=len(self._held),
            slots=self._each * rows.slots,
            visual_tokens=self._model.cfg.visual_tokens,
        )
        return rows, {name: arrays[name] for name in TEXT}, pictures

    def _here(self, rows: Sequence) -> list:
        """Of something for each row of a batch, what belongs to the groups held here."""
        return [x for g in self._held for x in rows[g * self._each : (g + 1) * self._each]]

    def _dispatch(self, rows: Rows, arrays, pictures, numbers, sampling: Sampling, stop):
        errors: dict[int, str] = {}
        if rows.slots:
            size = self._spec.hr_size
            images = np.zeros((len(pictures), len(pictures[0]), size, size, 3), np.uint8)
            for g, m in np.ndindex(images.shape[:2]):
                if pictures[g][m] is not None:
                    member, loading = pictures[g][m]
                    try:
                        images[g, m] = loading.result()
                    except ImageError as error:
                        errors[member] = str(error)
            arrays = arrays | {"images": images}
        mine = [numbers[m] for m in rows.members] + [0] * (self._batch - len(rows.members))
        draws = draws_of(sampling, self._here(mine)) if sampling.temperature > 0 else None
        host = (arrays, draws)
        batch, draws = sharding.place_batch(host, self._mesh, self._groups, self._held)
        how = {"new": sampling.max_new_tokens, "stop": stop}
        if sampling.num_beams == 1:
            out = continuations(self._model, self._params, batch, draws, **how)
        else:
            how["beams"] = sampling.num_beams
            out = searched(self._model, self._params, batch, draws, **how)
        return rows, errors, *out

    def _collect(self, rows: Rows, errors, tokens, margins) -> dict[int, Continuation]:
        tokens, margins = _rows_here(tokens), _rows_here(margins)
        found = {}
        for row, member in enumerate(rows.members):
            if row in self._own:
                ids = tuple(int(i) for i in tokens[row] if i >= 0)
                margin = None if np.isnan(margins[row]) else float(margins[row])
                error = errors.get(member)
                found[member] = Continuation(() if error else ids, margin, error)
        return found


def _load(picture, spec: ImageSpec) -> np.ndarray:
    """A path, a file or a PIL picture -> HR picture, uint8. ImageError."""
    return to_hr(picture if hasattr(picture, "getpixel") else load_image(picture), spec)


def _rows_here(x: jax.Array) -> dict[int, np.ndarray]:
    """Row number -> row, of those that lie on this process's devices."""
    found = {}
    for shard in x.addressable_shards:
        start = shard.index[0].start or 0
        found |= dict(enumerate(np.asarray(shard.data), start))
    return found
