"""The language model: a LLaMA-family decoder (MGM_SPEC 1.2, 2.6).

B rows, T tokens, S cached tokens, D dim, N heads, K key heads, H head dim, V vocabulary, L layers.
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
from mgm_jax.ops.rope import rope_tables, rotate


def linear(features: int, axes: tuple[str, str], name: str) -> Linear:
    return Linear(features, axes, use_bias=False, kernel_init=fan_in_init, name=name)


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
    """SwiGLU: down(act(gate x) * up x)."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x):
        cfg = self.cfg
        gate = activation(cfg.act)(linear(cfg.mlp_dim, ("embed", "mlp"), "gate_proj")(x))
        up = linear(cfg.mlp_dim, ("embed", "mlp"), "up_proj")(x)
        return linear(x.shape[-1], ("mlp", "embed"), "down_proj")(gate * up)


class Block(nn.Module):
    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x, shared, cache):
        eps = self.cfg.norm_eps
        h, cache = Attention(self.cfg, name="attn")(
            RMSNorm(eps, name="attn_norm")(x), shared, cache
        )
        x = x + h
        x = x + Mlp(self.cfg, name="mlp")(RMSNorm(eps, name="mlp_norm")(x))
        return x, cache


class Decoder(nn.Module):
    """Embeddings [B, T, D] -> final-norm states [B, T, D]; `head` turns states into logits."""

    cfg: DecoderConfig
    remat: str = "none"
    scan: bool = True

    def setup(self):
        cfg = self.cfg
        self.embed = Embed(
            cfg.vocab_size, cfg.dim, ("vocab", "embed"), embedding_init=normal_init(1.0)
        )
        self.layers = stack(Block, cfg.layers, remat=self.remat, scan=self.scan)(cfg)
        self.norm = RMSNorm(cfg.norm_eps)
        if not cfg.tied_embeddings:
            self.lm_head = linear(cfg.vocab_size, ("embed", "vocab"), None)

    def head(self, x):
        """States [..., D] -> logits [..., V]."""
        return self.embed.logits(x) if self.cfg.tied_embeddings else self.lm_head(x)

    def _run(self, x, positions, mask, cache, slot):
        precise = jnp.promote_types(x.dtype, jnp.float32)
        rope = rope_tables(positions, self.cfg.head_dim, self.cfg.rope_theta, precise)
        x, cache = self.layers(x, {"rope": rope, "mask": mask, "slot": slot}, cache)
        return self.norm(x), cache

    def __call__(self, x, positions, segments):
        """Packed rows: positions and segments [B, T] (0 = padding) -> states [B, T, D]."""
        return self._run(x, positions, packed_mask(segments), None, 0)[0]

    def extend(self, x, positions, mask, cache, slot):
        """Writes x's T tokens into the cache from `slot` on and attends under mask [B, T, S].

        Returns (states [B, T, D], the new cache).
        """
        return self._run(x, positions, mask, cache, slot)
