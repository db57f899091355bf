"""The float path: the original's inputs and outputs, for parity work (not for training or serving).

Ids are the original's, with -200 for each picture; pictures are its normalised float tensors,
channels last. P pictures, R views (g*g crops, then the global one), N visual tokens a picture, B
rows of L merged positions, D language-model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from mgm_jax.convert.families import mgm
from mgm_jax.convert.rules import export_params
from mgm_jax.data.examples import Example, batch_rows, cut, expand
from mgm_jax.generate.batches import greedy
from mgm_jax.generate.prompts import BUCKET
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.text import IGNORE, IMAGE_ID
from mgm_jax.tree import flatten, merge, unflatten

jit = functools.partial(jax.jit, static_argnames="module")


@jit
def tower_features(params, lr, hr, *, module: Mgm):
    """Normalised views, as `encode_images` takes them -> the towers' features, not yet mined."""
    return module.apply({"params": params}, lr, hr, method="encode_views")


@jit
def _visual_tokens(params, features, *, module: Mgm):
    return module.apply({"params": params}, features, method="visual_tokens")


@jit
def _forward(params, batch, *, module: Mgm):
    logits, out = module.apply({"params": params}, batch)
    total, weight = module.apply({"params": params}, batch, method="loss")
    return out["inputs_embeds"], logits, total / jnp.maximum(weight, 1)


@jit
def _gradients(trainable, frozen, pictures, batch, *, module: Mgm):
    def loss(trainable):
        params, features = merge(trainable, frozen), {}
        if pictures is not None:
            found = module.apply({"params": params}, *pictures, method="encode_views")
            features["features"] = jax.tree.map(lambda f: f[None], found)
        total, weight = module.apply({"params": params}, batch | features, method="loss")
        return total / jnp.maximum(weight, 1)

    return jax.grad(loss)(trainable)


def encode_images(module: Mgm, params, lr, hr):
    """Normalised views -> (features [P, N, D] after the projector, named intermediates).

    lr [P, h, w, 3], or [P, R, h, w, 3] with a grid of crops; hr [P, H, W, 3]. Intermediates:
    clip_features [P, N, C] (with a grid [P, R, n, C], views as in lr), convnext_map [P, h, w, C'],
    mined and tokens [P, N, C] (MGM_SPEC 2.2). ValueError for pictures of another shape.
    """
    lr, hr = check_pictures(module.cfg, lr, hr)
    tokens, out = _visual_tokens(
        params, tower_features(params, lr, hr, module=module), module=module
    )
    if module.cfg.image.grid > 1:
        clip = out["clip_features"]
        shape = (len(lr), module.cfg.image.crops, -1, clip.shape[-1])
        out["clip_features"] = clip.reshape(shape)
    keys = ("clip_features", "convnext_map", "mined", "tokens")
    return np.asarray(tokens), {k: np.asarray(out[k]) for k in keys if k in out}


def check_pictures(cfg: MgmConfig, lr, hr):
    """The two views as float32; ValueError for a shape that the config does not say."""
    spec = cfg.image
    views = (spec.crops,) if spec.grid > 1 else ()
    sizes = {"lr": (*views, spec.lr_size, spec.lr_size, 3), "hr": (spec.hr_size, spec.hr_size, 3)}
    found = {"lr": np.asarray(lr, np.float32), "hr": np.asarray(hr, np.float32)}
    for name, array in found.items():
        if array.shape[1:] != sizes[name] or len(array) != len(found["hr"]):
            raise ValueError(
                f"{name} is {array.shape}, expected {(len(found['hr']), *sizes[name])}: pictures, "
                "channels last"
            )
    return found["lr"], found["hr"]


def merge_row(ids, labels, visual_tokens: int, max_length: int | None) -> Example:
    """One row's ids with -200 -> an Example, cut at `max_length` (MGM_SPEC 2.4 step 4).

    Targets are labels, which need not equal the ids; a cut can go through a picture.
    """
    ids, labels = np.asarray(ids), np.asarray(labels)
    if ids.shape != labels.shape or ids.ndim != 1:
        raise ValueError(f"ids {ids.shape} and labels {labels.shape}: expected rows of one length")
    row = expand(ids, labels, visual_tokens, [None] * int((ids == IMAGE_ID).sum()))
    merged = np.repeat(np.where(ids == IMAGE_ID, IGNORE, labels), _repeats(ids, visual_tokens))
    targets = np.append(merged[1:], IGNORE)
    row = dataclasses.replace(
        row,
        targets=np.where(targets == IGNORE, 0, targets).astype(np.int32),
        loss_weights=(targets != IGNORE).astype(np.float32),
    )
    return cut(row, max_length)


def _repeats(ids, visual_tokens: int):
    return np.where(ids == IMAGE_ID, visual_tokens, 1)


def pictures_of_rows(rows, pictures: int) -> list[list[int]]:
    """Which of the given pictures each row shows, in order.

    As in the original, a row without a placeholder uses one picture up unseen (MGM_SPEC 2.4), but
    for when there are exactly as many pictures as placeholders. ValueError if there are too few.
    """
    counts = [int((np.asarray(ids) == IMAGE_ID).sum()) for ids in rows]
    steps = counts if sum(counts) == pictures else [max(1, n) for n in counts]
    starts = np.cumsum([0, *steps])
    if any(n and start + n > pictures for n, start in zip(counts, starts[:-1], strict=True)):
        raise ValueError(
            f"{sum(counts)} picture placeholders (-200) in {len(rows)} rows, but {pictures} "
            "pictures (a row without a placeholder counts for one unless the numbers agree)"
        )
    return [list(range(s, s + n)) for n, s in zip(counts, starts[:-1], strict=True)]


def make_batch(cfg: MgmConfig, rows, labels, pictures: int, max_length: int | None):
    """Rows of ids -> a right-padded batch without pictures, its length rounded up to few sizes."""
    n = cfg.visual_tokens
    found = [
        [dataclasses.replace(merge_row(*row, n, max_length), images=())]
        for row in zip(rows, labels, strict=True)
    ]
    length = -(-max(len(e) for (e,) in found) // BUCKET) * BUCKET
    batch, _ = batch_rows(found, length=length, groups=1, slots=1, visual_tokens=n)
    for index, shown in zip(batch["visual_index"], pictures_of_rows(rows, pictures), strict=True):
        if shown:
            index[index >= 0] += shown[0] * n
    return batch


def _prepare(module: Mgm, params, rows, labels, lr, hr, max_length):
    """-> (batch with the pictures' features, number of merged positions [B])."""
    if lr is not None and len(lr):
        lr, hr = check_pictures(module.cfg, lr, hr)
        batch = make_batch(module.cfg, rows, labels, len(lr), max_length)
        features = tower_features(params, lr, hr, module=module)
        batch["features"] = jax.tree.map(lambda f: f[None], features)
    else:
        batch = make_batch(module.cfg, rows, labels, 0, max_length)
    return batch, (batch["segments"] > 0).sum(-1)


def _ignored(rows):
    return [np.full(len(ids), IGNORE) for ids in rows]


def forward_ids(
    module: Mgm, params, input_ids, lr, hr, labels=None, *, max_length=None, padding_side="right"
):
    """Unpadded rows of ids with -200, float pictures in their order (or None) -> the original's
    merged batch and outputs, L the longest row (MGM_SPEC 2.4, 2.5).

    Returns inputs_embeds [B, L, D] float32 before Gemma's scale (zeros in padding), labels [B, L]
    int64 (-100 on pictures and padding; None without labels), attention_mask [B, L] bool, logits
    [B, L, V] float32 (zeros in padding), loss (None without labels; 0 if every label is -100).
    Rows are cut at `max_length` merged positions.
    """
    rows = [np.asarray(ids) for ids in input_ids]
    given = _ignored(rows) if labels is None else [np.asarray(x) for x in labels]
    batch, lengths = _prepare(module, params, rows, given, lr, hr, max_length)
    embeds, logits, loss = _forward(params, batch, module=module)
    n, longest = module.cfg.visual_tokens, int(lengths.max())

    def place(arrays, fill, dtype):
        out = np.full((len(rows), longest, *np.shape(arrays[0])[1:]), fill, dtype)
        for row, array, length in zip(out, arrays, lengths, strict=True):
            start = longest - length if padding_side == "left" else 0
            row[start : start + length] = array[:length]
        return out

    merged = [
        np.repeat(np.where(ids == IMAGE_ID, IGNORE, lab), _repeats(ids, n))
        for ids, lab in zip(rows, given, strict=True)
    ]
    return {
        "inputs_embeds": place(np.asarray(embeds, np.float32), 0, np.float32),
        "labels": None if labels is None else place(merged, IGNORE, np.int64),
        "attention_mask": place([np.ones(n, bool) for n in lengths], False, bool),
        "logits": place(np.asarray(logits, np.float32), 0, np.float32),
        "loss": None if labels is None else float(loss),
    }


def generate_ids(
    module: Mgm, params, ids, lr, hr, max_new_tokens: int, eos_id=None, *, max_length=None
):
    """One prompt's ids (or a list of prompts') with -200 -> its new ids, greedy, KV cache.

    Stops after `eos_id` (an int or several; kept in the result), or at `max_new_tokens`.
    """
    single = np.ndim(ids[0]) == 0
    rows = [np.asarray(row) for row in ([ids] if single else ids)]
    batch, _ = _prepare(module, params, rows, _ignored(rows), lr, hr, max_length)
    stop = () if eos_id is None else tuple(int(i) for i in np.atleast_1d(eos_id))
    tokens = np.asarray(greedy(module, params, batch, new=max_new_tokens, stop=stop))
    new = [[int(i) for i in row if i >= 0] for row in tokens]
    return new[0] if single else new


def trains(cfg: MgmConfig, name: str, stage: int, *, clip=False, convnext=False) -> bool:
    """Whether the original trains its parameter `name` in a stage (MGM_SPEC 6.2).

    `clip`, `convnext`: its `optimize_vision_tower` and `optimize_vision_tower_aux`, which open the
    second half of CLIP's layers and the last block of each ConvNeXt stage.
    """
    if match := re.match(r"model\.vision_tower\..*\.layers\.(\d+)\.", name):
        return clip and int(match[1]) >= cfg.clip.layers // 2
    if match := re.match(r"model\.vision_tower_aux\.vision_stages\.(\d+)\.blocks\.(\d+)\.", name):
        return convnext and int(match[2]) == cfg.convnext.depths[int(match[1])] - 1
    if name.startswith("model.vision_tower"):
        return False
    return stage == 2 or name.startswith(("model.mm_projector", "model.vlm_uni"))


def grads_ids(
    module: Mgm, params, input_ids, lr, hr, labels, *, stage: int, max_length=None, **towers
):
    """Gradients of the mean loss -> {original's name: float32 array in torch's layout}.

    Of all that the original trains in `stage` (1 or 2); `towers`: see `trains`.
    """
    if stage not in (1, 2):
        raise ValueError(f"stage is {stage!r}, expected 1 or 2")
    cfg, pictures = module.cfg, None
    rows, given = [np.asarray(r) for r in input_ids], [np.asarray(r) for r in labels]
    if any(towers.values()) and lr is not None and len(lr):  # back into the towers, too
        pictures = check_pictures(cfg, lr, hr)
        batch = make_batch(cfg, rows, given, len(lr), max_length)
    else:
        batch, _ = _prepare(module, params, rows, given, lr, hr, max_length)
    opened = {"projector", "mining", *(part for part, is_open in towers.items() if is_open)}
    opened |= {"llm"} if stage == 2 else set()
    flat = flatten(params)
    split = [
        unflatten({k: v for k, v in flat.items() if (k.split("/")[0] in opened) == side})
        for side in (True, False)
    ]
    grads = flatten(_gradients(*split, pictures, batch, module=module))
    grads = {k: np.asarray(v, np.float32) for k, v in grads.items()}
    named = export_params(grads, mgm.rules(cfg))
    return {n: g for n, g in named if trains(cfg, n, stage, **towers)}
