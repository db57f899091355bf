"""The original's batches as ours. P = 3 pictures, N = 16 visual tokens each."""

from pathlib import Path

import jax
import numpy as np

from mgm_jax.data.examples import batch_rows, expand

HERE = Path(__file__).parent.parent / "golden" / "llama_mha"
IGNORE = -100
N = 16


def views(arrays, count=3):
    """Stored int8 pixels -> (lr, hr), channels last, repeated to `count` pictures."""
    found = []
    for key in ("images_q", "images_aux_q"):
        x = np.moveaxis(arrays[key].astype(np.float32) / 32, 1, -1)
        found.append(x[np.arange(count) % len(x)])
    return found


def make_batch(features, ids, labels, mask, images, *, length, rows=None, slots=3):
    """The original's padded ids (-200 = a picture) as a batch; `images[i]`: pictures of row i.

    Filled up with empty rows to `rows`, so that cases of different sizes share one compilation.
    """
    examples = [
        [expand(i[m], lab[m], N, pics)]
        for i, lab, m, pics in zip(ids, labels, mask.astype(bool), images, strict=True)
    ]
    batch, (order,) = batch_rows(examples, length=length, groups=1, slots=slots, visual_tokens=N)
    more = (rows or len(ids)) - len(ids)
    for name, value in batch.items():
        empty = -1 if name == "visual_index" else 0
        batch[name] = np.pad(value, [(0, more), (0, 0)], constant_values=empty)
    order = np.array([0 if i is None else int(i) for i in order])
    return batch | {"features": jax.tree.map(lambda f: f[order][None], features)}  # [1, M, ...]
