"""The language model: LLaMA, Vicuna, Yi, Mistral, Mixtral and Gemma in one (MGM_SPEC 1.2, 2.6).

B rows, T tokens, S cached tokens, D dim, N heads, K key heads, H head dim, F MLP dim, E experts,
V vocabulary, L layers.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgm_jax.models.config import DecoderConfig
from mgm_jax.nn.linear import Embed, Linear, fan_in_init, normal_init
from mgm_jax.nn.norms import RMSNorm
from mgm_jax.nn.stack import stack
from mgm_jax.ops.activations import activation
from mgm_jax.ops.attention import attend, packed_mask
from mgm_jax.ops.moe import balance_loss, dispatch, expert_mlp, route, router_load
from mgm_jax.ops.rope import rope_tables, rotate


def linear(features: int, axes: tuple[str, str], name: str) -> Linear:
    return Linear(features, axes, use_bias=False, kernel_init=fan_in_init, name=name)


def norm(cfg: DecoderConfig, name: str | None) -> RMSNorm:
    return RMSNorm(cfg.norm_eps, zero_centred=cfg.zero_centred_norm, name=name)


def empty_cache(cfg: DecoderConfig, batch: int, length: int, dtype=jnp.float32):
    """A KV cache: keys and values [L, B, length, K, H], zeros."""
    shape = (cfg.layers, batch, length, cfg.kv_heads, cfg.head_dim)
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}


class Attention(nn.Module):
    """Grouped-query attention over x itself, or over a cache that x is written into."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x, shared, cache):
        cfg, (b, t, d) = self.cfg, x.shape
        q = linear(cfg.heads * cfg.head_dim, ("embed", "heads"), "q_proj")(x)
        k = linear(cfg.kv_heads * cfg.head_dim, ("embed", "kv_heads"), "k_proj")(x)
        v = linear(cfg.kv_heads * cfg.head_dim, ("embed", "kv_heads"), "v_proj")(x)
        q = rotate(q.reshape(b, t, cfg.heads, cfg.head_dim), shared["rope"])
        k = rotate(k.reshape(b, t, cfg.kv_heads, cfg.head_dim), shared["rope"])
        v = v.reshape(b, t, cfg.kv_heads, cfg.head_dim)
        if cache is not None:
            start = (0, shared["slot"], 0, 0)
            cache = {
                "k": jax.lax.dynamic_update_slice(cache["k"], k.astype(cache["k"].dtype), start),
                "v": jax.lax.dynamic_update_slice(cache["v"], v.astype(cache["v"].dtype), start),
            }
            k, v = cache["k"].astype(x.dtype), cache["v"].astype(x.dtype)
        out = attend(q, k, v, shared["mask"]).reshape(b, t, cfg.heads * cfg.head_dim)
        return linear(d, ("heads", "embed"), "o_proj")(out), cache


class Mlp(nn.Module):
    """SwiGLU or GeGLU: down(act(gate x) * up x)."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x):
        cfg = self.cfg
        gate = activation(cfg.act)(linear(cfg.mlp_dim, ("embed", "mlp"), "gate_proj")(x))
        up = linear(cfg.mlp_dim, ("embed", "mlp"), "up_proj")(x)
        return linear(x.shape[-1], ("mlp", "embed"), "down_proj")(gate * up)


class Experts(nn.Module):
    """Each token through its best few of E SwiGLUs, none dropped: [B, T, D] -> (same, load).

    `load` is what `balance_loss` takes, over the tokens of `real` [B, T] bool (None: all).
    """

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x, real):
        cfg, (b, t, d) = self.cfg, x.shape
        e, f = cfg.experts.count, cfg.mlp_dim

        def kernel(name, shape, axes):
            def init(key, shape):  # as `linear`, where the inputs are not the first axis
                return jax.random.normal(key, shape) * shape[1] ** -0.5

            param = self.param(name, nn.with_logical_partitioning(init, ("expert", *axes)), shape)
            return param.astype(x.dtype)

        x = x.reshape(-1, d)  # [B*T, D]
        logits = linear(e, ("embed", None), "router")(x)
        weights, chosen, probabilities = route(logits, cfg.experts.per_token)
        w_gate = kernel("w_gate", (e, d, f), ("embed", "mlp"))
        w_up = kernel("w_up", (e, d, f), ("embed", "mlp"))
        w_down = kernel("w_down", (e, f, d), ("mlp", "embed"))
        mlp = expert_mlp(w_gate, w_up, w_down, activation(cfg.act))
        y = dispatch(mlp, x, weights, chosen, e)
        load = router_load(probabilities, chosen, None if real is None else real.reshape(-1))
        return y.reshape(b, t, d), load


class Block(nn.Module):
    """Pre-norm attention and MLP (or experts): [B, T, D] -> the same, {cache, load of experts}."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x, shared, cache):
        cfg, load = self.cfg, None
        h = norm(cfg, "attn_norm")(x)
        h, cache = Attention(cfg, name="attn")(h, shared, cache)
        x = x + h
        h = norm(cfg, "mlp_norm")(x)
        if cfg.experts:
            h, load = Experts(cfg, name="moe")(h, shared["real"])
        else:
            h = Mlp(cfg, name="mlp")(h)
        return x + h, {"cache": cache, "load": load}


class Decoder(nn.Module):
    """Input embeddings [B, T, D] -> final-norm states [B, T, D]; `head` gives logits from states.

    Input embeddings are as `embed` returns them: a Gemma's are scaled inside.
    """

    cfg: DecoderConfig
    remat: str = "none"
    scan: bool = True

    def setup(self):
        cfg = self.cfg
        self.embed = Embed(
            cfg.vocab_size, cfg.dim, ("vocab", "embed"), embedding_init=normal_init(1.0)
        )
        self.layers = stack(Block, cfg.layers, remat=self.remat, scan=self.scan)(cfg)
        self.norm = norm(cfg, None)
        if not cfg.tied_embeddings:
            self.lm_head = linear(cfg.vocab_size, ("embed", "vocab"), None)

    def head(self, x):
        """States [..., D] -> logits [..., V]."""
        return self.embed.logits(x) if self.cfg.tied_embeddings else self.lm_head(x)

    def scale(self, x):
        """Embeddings times sqrt(dim), if the config says so, in x's dtype."""
        factor, precise = self.cfg.dim**0.5, jnp.promote_types(x.dtype, jnp.float32)
        if self.cfg.embed_scale == "exact":
            return (x.astype(precise) * factor).astype(x.dtype)
        return x * jnp.asarray(factor, x.dtype) if self.cfg.embed_scale else x

    def _run(self, x, positions, cache, **shared):
        precise = jnp.promote_types(x.dtype, jnp.float32)
        shared["rope"] = rope_tables(positions, self.cfg.head_dim, self.cfg.rope_theta, precise)
        x, out = self.layers(self.scale(x), shared, cache)
        return self.norm(x), out

    def __call__(self, x, positions, segments):
        """Packed rows: positions and segments [B, T] (0 = padding).

        Returns (states [B, T, D], load-balancing loss of the experts, float32 [], without its
        coefficient: 0 when there are none).
        """
        shared = {"mask": packed_mask(segments), "slot": 0, "real": segments > 0}
        x, out = self._run(x, positions, None, **shared)
        return x, balance_loss(out["load"]) if self.cfg.experts else jnp.zeros((), jnp.float32)

    def extend(self, x, positions, mask, cache, slot):
        """Writes x's T tokens into the cache from `slot` on and attends under mask [B, T, S].

        Returns (states [B, T, D], the new cache).
        """
        x, out = self._run(x, positions, cache, mask=mask, slot=slot, real=None)
        return x, out["cache"]
