"""What an engine has on its devices: weights, slots, and what it keeps of earlier prompts.

n prompts are read at a time, T is the bucket of their length; rows are slots. The shapes that
compile: `sizes` of n times `buckets` of T.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mgm_jax import sharding
from mgm_jax.data.examples import Example
from mgm_jax.generate import slots as programs
from mgm_jax.generate.prefix import Lru
from mgm_jax.generate.sampling import Sampling
from mgm_jax.models.decoder import for_decoding


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A request as arrays: its pictures as the model sees them [H, W, 3] uint8, and their hashes;
    `prefix`: see `prefix.prefix_of`; `left`: tokens of the answer at most."""

    example: Example
    pixels: tuple[np.ndarray, ...]
    pictures: tuple[str, ...]
    prefix: tuple[int, tuple] | None
    sampling: Sampling
    number: int
    left: int


class Route(NamedTuple):
    """How a prompt is read: `start` tokens are in memory, the rest takes a bucket."""

    start: int
    bucket: int


class Device:
    """Slots on a mesh. `prefixes` and `pictures` are what is kept (`prefix.Lru`).

    ValueError where slots do not divide by the batch axes of the mesh.
    """

    def __init__(
        self,
        module,
        params,
        *,
        slots: int,
        max_length: int,
        mesh: Mesh | None,
        buckets: Sequence[int],
        batch: int,
        steps: int,
        stop: Sequence[int],
        prefixes: Lru,
        pictures: Lru,
    ):
        shards = sharding.batch_shards(mesh) if mesh is not None else 1
        if slots % shards:
            raise ValueError(f"{slots} slots do not divide by the mesh's {shards} batch shards")
        self._module, self._params = module, params
        self._decode_params = for_decoding(params, module.cfg.llm.layers)
        self.count, self.max_length, self._mesh = slots, max_length, mesh
        self.buckets = sorted({b for b in buckets if 0 < b < max_length} | {max_length})
        self.sizes = sorted({-(-n // shards) * shards for n in (1, min(batch, slots))})
        self._steps = steps
        self._stop = tuple(sorted(stop))
        self.prefixes, self.pictures = prefixes, pictures
        self.reset()

    def reset(self) -> None:
        """Empty slots."""
        self._slots = programs.empty_slots(self._module, self.count, self.max_length, self._mesh)

    @property
    def cache(self):
        """The KV cache of all slots (`models.decoder.empty_cache`)."""
        return self._slots.cache

    def route(self, prompt: Prompt) -> Route:
        length = len(prompt.example)
        if prompt.prefix and prompt.prefix[1] in self.prefixes:
            start = prompt.prefix[0]
            if start + (bucket := self._bucket(length - start)) <= self.max_length:
                return Route(start, bucket)
        return Route(0, self._bucket(length))

    def _bucket(self, length: int) -> int:
        return next(b for b in self.buckets if b >= length)

    def read(self, prompts: Sequence[Prompt], rows: Sequence[int], route: Route):
        """Reads prompts of one bucket, all of them with or all without a beginning in memory, into
        slots `rows` -> what was drawn first: (tokens, log-probabilities, margins), each [n]."""
        starts = [self.route(p).start for p in prompts]
        batch = _text(prompts, starts, self._size(len(prompts)), route.bucket)
        if route.start:
            for prompt, row in zip(prompts, rows, strict=True):
                kept = self.prefixes.get(prompt.prefix[1])
                self._slots = programs.copy_in(self._slots, row, kept)
        elif any(p.pictures for p in prompts):
            batch["visual"] = self._visual(prompts, batch["visual_index"])
        drawn = self._begin("read_on" if route.start else "read", batch, rows, prompts)
        if not route.start:
            for prompt, row in zip(prompts, rows, strict=True):
                self._keep(prompt, row)
        return tuple(x[: len(prompts)] for x in drawn)

    def decode(self, alive: np.ndarray, eager: bool):
        """Some tokens for each slot of `alive` [B] -> (tokens, log-probabilities, margins), each
        [B, steps], with -1 where no token was drawn; `eager`: see `slots.decode`."""
        self._slots, drawn, _ = programs.decode(
            self._decode_params,
            self._slots,
            alive,
            self._steps,
            eager,
            model=self._module,
            stop=self._stop,
            most=self._steps,
        )
        return jax.device_get(tuple(drawn))

    def work(self) -> list[tuple[str, Callable[[], None]]]:
        """What there is to compile: names, and functions that do it on data without meaning."""
        nobody = np.zeros(self.count, bool)
        found = [("decode", lambda: self.decode(nobody, False))]
        size = self._module.cfg.image.hr_size
        for n in self.sizes:
            blank = {str(i): np.zeros((size, size, 3), np.uint8) for i in range(n)}
            found.append((f"{n} pictures", lambda blank=blank: self._look(blank)))
            for bucket in self.buckets:
                for name in ("read", "read_on"):
                    job = lambda *a: lambda: self._rehearse(*a)  # noqa: E731
                    found.append((f"{name} {n} x {bucket}", job(name, n, bucket)))
        return found

    # --- reading ---

    def _size(self, n: int) -> int:
        return next(s for s in self.sizes if s >= n)

    def _begin(self, name: str, batch, rows, prompts):
        n = len(batch["tokens"])
        x = programs.embed(
            self._params,
            {k: batch[k] for k in ("tokens", "visual_index", "visual") if k in batch},
            model=self._module,
        )
        batch = {"embeddings": x} | {k: batch[k] for k in ("positions", "segments")}
        rows = np.array([*rows, *[self.count] * (n - len(rows))], np.int32)
        program = getattr(programs, name)
        self._slots, logits = program(self._params, self._slots, batch, rows, model=self._module)
        draws = _draws(prompts, n)
        self._slots, drawn = programs.begin(self._slots, logits, rows, draws, stop=self._stop)
        return jax.device_get(tuple(drawn))

    def _visual(self, prompts: Sequence[Prompt], index: np.ndarray):
        """The pool of the prompts' visual tokens [1, M, N, D], M a power of two; shifts their
        `visual_index` to it."""
        missing = {}
        for prompt in prompts:
            known = zip(prompt.pictures, prompt.pixels, strict=True)
            missing |= {h: x for h, x in known if h not in self.pictures}
        fresh = self._look(missing)
        pool = []
        for row, prompt in enumerate(prompts):
            index[row] += np.where(index[row] >= 0, len(pool) * self._module.cfg.visual_tokens, 0)
            pool += [fresh[h] if h in fresh else self.pictures.get(h) for h in prompt.pictures]
        for name, tokens in fresh.items():
            self.pictures.put(name, tokens)
        pool += pool[:1] * (2 ** (len(pool) - 1).bit_length() - len(pool))
        return jnp.stack(pool)[None]

    def _look(self, pictures: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Pictures' visual tokens [N, D], by `sizes` of them at a time."""
        names, found = list(pictures), {}
        for at in range(0, len(names), self.sizes[-1]):
            chunk = names[at : at + self.sizes[-1]]
            filled = chunk + chunk[:1] * (self._size(len(chunk)) - len(chunk))
            images = np.stack([pictures[n] for n in filled])
            tokens = programs.look(self._params, images, model=self._module)
            found |= dict(zip(chunk, tokens, strict=False))
        return found

    def _keep(self, prompt: Prompt, row: int) -> None:
        if prompt.prefix and self.prefixes.limit and prompt.prefix[1] not in self.prefixes:
            length, key = prompt.prefix
            self.prefixes.put(key, programs.copy_out(self._slots, row, length=self._bucket(length)))

    def _rehearse(self, name: str, n: int, bucket: int) -> None:
        """Compiles reading `n` prompts of a bucket, without a request."""
        batch = _text((), (), n, bucket)
        visual_tokens = self._module.cfg.visual_tokens
        self._begin(name, batch, (), ())
        if name == "read_on":
            kept = programs.copy_out(self._slots, 0, length=bucket)
            self._slots = programs.copy_in(self._slots, 0, kept)
            return
        tokens = jnp.zeros((visual_tokens, self._module.cfg.llm.dim), self._module.dtype)
        for m in (1, 2, 4):
            if visual_tokens < bucket and m <= n * (bucket // visual_tokens):
                self._begin(name, batch | {"visual": jnp.stack([tokens] * m)[None]}, (), ())


def _text(prompts, starts, n: int, bucket: int) -> dict[str, np.ndarray]:
    """The prompts from `starts` on, right-padded: tokens, positions, segments, visual_index [n, T],
    indices still each prompt's own."""
    batch = {k: np.zeros((n, bucket), np.int32) for k in ("tokens", "positions", "segments")}
    batch["visual_index"] = np.full((n, bucket), -1, np.int32)
    for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        length = len(prompt.example) - start
        batch["tokens"][row, :length] = prompt.example.tokens[start:]
        batch["visual_index"][row, :length] = prompt.example.visual[start:]
        batch["positions"][row] = np.arange(start, start + bucket)
        batch["segments"][row, :length] = 1
    return batch


def _draws(prompts: Sequence[Prompt], n: int) -> dict[str, np.ndarray]:
    """What `slots.begin` takes as `draws`; rows of padding draw nothing."""
    rows = [(p.sampling, p.number, p.left) for p in prompts]
    rows += [(Sampling(), 0, 0)] * (n - len(rows))
    lengths = [len(p.example) for p in prompts] + [0] * (n - len(prompts))
    return {
        "position": np.array(lengths, np.int32),
        "seed": np.array([s.seed for s, _, _ in rows], np.uint32),
        "number": np.array([number for _, number, _ in rows], np.uint32),
        "temperature": np.array([s.temperature for s, _, _ in rows], np.float32),
        "top_p": np.array([s.top_p for s, _, _ in rows], np.float32),
        "top_k": np.array([s.top_k for s, _, _ in rows], np.int32),
        "left": np.array([left for _, _, left in rows], np.int32),
    }
