"""Next-token cross-entropy without ever holding all logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

CHUNK = 1024  # tokens whose float32 logits exist at one time


def token_losses(logits, targets):
    """logits [..., V], targets [...] int -> -log p(target) [...], float32."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def chunked_loss(head, x, targets, weights, chunk: int = CHUNK):
    """Sum of weighted token losses and sum of weights, logits `chunk` tokens at a time.

    head: x [t, D] -> logits [t, V]; x [B, T, D], targets and weights [B, T]. The backward pass
    recomputes each chunk's logits.
    """
    b, t, d = x.shape
    step = min(t, max(1, chunk // b))  # whole columns of the batch, so that rows keep their device
    pad = -t % step

    def columns(a):
        a = jnp.pad(a, [(0, 0), (0, pad)] + [(0, 0)] * (a.ndim - 2))
        return a.reshape(b, -1, step, *a.shape[2:]).swapaxes(0, 1)  # [chunks, B, step, ...]

    @jax.checkpoint
    def one(total, inputs):
        x, targets, weights = inputs
        return total + jnp.sum(token_losses(head(x), targets) * weights), None

    weights = weights.astype(jnp.promote_types(x.dtype, jnp.float32))
    zero = jnp.zeros((), weights.dtype)
    total, _ = jax.lax.scan(one, zero, (columns(x), columns(targets), columns(weights)))
    return total, weights.sum()


def microbatch_weights(weights, rows: int):
    """Loss weights [B, T] -> weights with the same sum under which the token mean of the batch is
    the mean over its micro-batches, of `rows` neighbouring rows each, of their own token means.

    That is gradient accumulation and data parallelism in the original (MGM_SPEC 2.5). The loss of a
    micro-batch without any weight is 0, and counts.
    """
    b, t = weights.shape
    sums = weights.reshape(-1, rows * t).sum(-1)  # [B / rows]
    scale = weights.sum() / (len(sums) * jnp.where(sums > 0, sums, jnp.inf))
    return weights * jnp.repeat(scale, rows)[:, None]
