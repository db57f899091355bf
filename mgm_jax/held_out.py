"""Held-out loss: a loaded model on records that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mgm_jax.api import LoadedModel
from mgm_jax.data.examples import batch_rows
from mgm_jax.data.pipeline import Encoder, Pictures
from mgm_jax.data.records import Record
from mgm_jax.ops.loss import token_losses

BUCKET = 64  # rows are as long as a multiple of this, so that few shapes compile


def batches(model: LoadedModel, records: Sequence[Record], length: int) -> Iterator[dict]:
    """One record a row and batch, of the batch contract. ValueError names a record that does not
    fit `length`."""
    cfg = model.config
    encode = Encoder(model.template, model.tokenizer, cfg.visual_tokens, length)
    load_pictures = Pictures(cfg.image)
    for record in records:
        example = encode(record)
        arrays, pictures = batch_rows(
            [[example]],
            length=-(-len(example) // BUCKET) * BUCKET,
            groups=1,
            slots=max(1, len(example.images)),
            visual_tokens=cfg.visual_tokens,
        )
        yield arrays | load_pictures(pictures)


def measure(model: LoadedModel, records: Sequence[Record], length: int):
    """(mean loss of the answers' tokens, their number n, the most likely token at each [n]).

    ValueError if there is no such token.
    """

    @jax.jit
    def run(params, batch):
        logits, _ = model.module.apply({"params": params}, batch)
        losses = token_losses(logits, batch["targets"]) * batch["loss_weights"]
        return losses.sum(), jnp.argmax(logits, -1)

    total, likely = 0.0, []
    for batch in batches(model, records, length):
        loss, best = run(model.params, batch)
        total += float(loss)
        likely.append(np.asarray(best)[batch["loss_weights"] > 0])
    if not (count := sum(map(len, likely))):
        raise ValueError(f"{len(records)} records have no token with loss, expected some")
    return total / count, count, np.concatenate(likely)
