"""A cache of the frozen towers' features on disk (trainer option `data.cache_features`).

One `.bin` a feature array, row = picture, memory-mapped. `key` is written last and says what the
rows were computed from: tower parameters, image spec, pictures (name and `stamp`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from mgm_jax.checkpoint import writing
from mgm_jax.data.images import ImageError
from mgm_jax.data.pipeline import Pictures
from mgm_jax.data.records import Picture
from mgm_jax.models.mgm import Mgm
from mgm_jax.tree import flatten

TOWERS = ("clip", "convnext")


@dataclasses.dataclass(frozen=True)
class CachedFeatures:
    """Pictures of a batch [G][M] -> {"features": arrays [G, M, ...], "image_mask": [G, M]}."""

    rows: dict[str, int]  # name of a picture -> row
    leaves: tuple[np.ndarray, ...]
    structure: jax.tree_util.PyTreeDef

    def __call__(self, pictures: Sequence[Sequence[Picture | None]]) -> dict:
        mask = np.array([[p is not None for p in group] for group in pictures])
        rows = [self.rows[p.name] for group in pictures for p in group if p is not None]
        arrays = []
        for leaf in self.leaves:
            out = np.zeros((*mask.shape, *leaf.shape[1:]), leaf.dtype)
            out[mask] = leaf[rows]
            arrays.append(out)
        return {"features": self.structure.unflatten(arrays), "image_mask": mask}


def _key(params, model: Mgm, pictures: Sequence[Picture]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(flatten({t: params[t] for t in TOWERS if t in params}).items()):
        digest.update(name.encode())
        digest.update(np.asarray(value).tobytes())
    digest.update(repr((model.cfg.image, model.cfg.clip, model.cfg.convnext, model.dtype)).encode())
    for picture in pictures:
        try:
            digest.update(f"{picture.name} {picture.stamp()}".encode())
        except OSError as error:
            raise ImageError(f"picture {picture.name}: {error.strerror}") from error
    return digest.hexdigest()


def cache_features(
    directory: str | Path, model: Mgm, params, pictures: Sequence[Picture], *, batch: int = 16
) -> CachedFeatures:
    """Computes (or reuses, if nothing that they depend on has changed) the features of `pictures`.

    `params` as the training step has them (their dtype matters). Raises ValueError without any,
    ImageError for a picture that is missing or corrupt, CheckpointError for a cache that cannot be
    written.
    """
    directory = Path(directory)
    pictures = [p for _, p in sorted({p.name: p for p in pictures}.items())]
    if not pictures:
        raise ValueError("data.cache_features: the records have no pictures, expected at least one")
    key, key_file = _key(params, model, pictures), directory / "key"
    towers = {"params": {t: params[t] for t in TOWERS if t in params}}
    compute = jax.jit(lambda towers, x: model.apply(towers, x, method="tower_features"))
    size = model.cfg.image.hr_size
    pixels = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    shapes, structure = jax.tree.flatten(jax.eval_shape(compute, towers, pixels))
    files = [directory / f"{i}.bin" for i in range(len(shapes))]

    if not (key_file.exists() and key_file.read_text() == key):
        read = Pictures(model.cfg.image)

        def pixels_from(start):
            some = pictures[start : start + batch]
            return read([some + [None] * (batch - len(some))])["images"][0]

        starts = range(0, len(pictures), batch)
        with contextlib.ExitStack() as stack:
            stack.enter_context(writing(directory, "the tower features"))
            directory.mkdir(parents=True, exist_ok=True)
            key_file.unlink(missing_ok=True)
            # Written in order: a full disk is an OSError here, and a dead process under a map.
            outs = [stack.enter_context(open(f, "wb")) for f in files]
            # The next batch is read while this one is computed.
            pool = stack.enter_context(ThreadPoolExecutor(1))
            ready = pool.submit(pixels_from, 0)
            for start in tqdm(starts, desc="tower features", unit="batch", mininterval=2):
                found = compute(towers, ready.result())
                if start + batch < len(pictures):
                    ready = pool.submit(pixels_from, start + batch)
                for out, leaf in zip(outs, jax.tree.leaves(found), strict=True):
                    out.write(np.asarray(leaf)[: len(pictures) - start].tobytes())
        with writing(directory, "the tower features"):
            key_file.write_text(key)
    leaves = tuple(
        np.memmap(f, s.dtype, "r", shape=(len(pictures), *s.shape[1:]))
        for f, s in zip(files, shapes, strict=True)
    )
    return CachedFeatures({p.name: i for i, p in enumerate(pictures)}, leaves, structure)
