"""The language model: LLaMA, Vicuna, Yi, Mistral, Mixtral and Gemma in one (MGM_SPEC 1.2, 2.6).

B rows, T tokens, S cached tokens, D dim, N heads, K key heads, H head dim, F MLP dim, E experts,
V vocabulary, L layers.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from mgm_jax.models.config import DecoderConfig
from mgm_jax.nn.layout import split_rows
from mgm_jax.nn.linear import Embed, Linear, as_array, fan_in_init, normal_init, weight
from mgm_jax.nn.norms import RMSNorm
from mgm_jax.nn.stack import stack
from mgm_jax.ops.activations import activation
from mgm_jax.ops.attention import decode_attend, packed_attend
from mgm_jax.ops.mesh import BATCH_AXES
from mgm_jax.ops.moe import balance_loss, expert_mlp, route, router_load
from mgm_jax.ops.rope import rope_tables, rotate


def linear(features: int, axes: tuple[str, str], name: str) -> Linear:
    return Linear(features, axes, use_bias=False, kernel_init=fan_in_init, name=name)


def norm(cfg: DecoderConfig, name: str | None) -> RMSNorm:
    return RMSNorm(cfg.norm_eps, zero_centred=cfg.zero_centred_norm, name=name)


def empty_cache(cfg: DecoderConfig, batch: int, length: int, dtype=jnp.float32):
    """A KV cache: for each layer, keys and values [B, K, length, H], zeros.

    Layers have arrays of their own, heads come before slots: so a step writes in place, and reads
    each head's slots in a row (docs/performance.md).
    """
    shape = (batch, cfg.kv_heads, length, cfg.head_dim)
    return tuple({n: jnp.zeros(shape, dtype) for n in ("k", "v")} for _ in range(cfg.layers))


def cache_spec(cfg: DecoderConfig, tensor: int) -> PartitionSpec:
    """How each array of a cache lies on a mesh whose tensor axis has that size: rows over the batch
    axes, key heads over the tensor axis where they divide."""
    return PartitionSpec(BATCH_AXES, None if cfg.kv_heads % tensor else "tensor")


def write_cache(cache, kv, slot):
    """Keys and values [B, K, T, H] in slots `slot` and behind of a layer's cache [B, K, S, H].

    `slot`: one number for all rows, or [B].
    """

    def write(old, new):
        new = new.astype(old.dtype)
        if jnp.ndim(slot) == 0:
            return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=2)
        return jax.vmap(lambda o, n, at: jax.lax.dynamic_update_slice_in_dim(o, n, at, axis=1))(
            old, new, slot
        )

    return jax.tree.map(write, cache, kv)


def unstack(layers, depth: int):
    """A stack of layers (parameters on axis 0) -> a tuple of `depth` layers."""
    return tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(depth))


def for_decoding(params, depth: int):
    """A model's parameters as a step of decoding reads them fastest.

    On a CPU a layer that is sliced out of a stack is copied at every step, so there each gets
    arrays of its own, which takes the memory of the decoder again. Elsewhere the slice is a part of
    the product, and the parameters are as they were.
    """
    if jax.default_backend() != "cpu":
        return params
    return params | {"llm": params["llm"] | {"layers": unstack(params["llm"]["layers"], depth)}}


class Attention(nn.Module):
    """Grouped-query attention: [B, T, D] -> (the same, cache), by what `cache` is.

    None: x over itself. {}: that too, and x's keys and values come out as {"k", "v"} [B, K, T, H].
    A layer's cache: x is written into `slot` of it, attends to it under `mask`, and it comes out.
    """

    cfg: DecoderConfig
    form: str

    @nn.compact
    def __call__(self, x, shared, cache):
        cfg, (b, t, d) = self.cfg, x.shape
        q = linear(cfg.heads * cfg.head_dim, ("embed", "heads"), "q_proj")(x)
        k = linear(cfg.kv_heads * cfg.head_dim, ("embed", "kv_heads"), "k_proj")(x)
        v = linear(cfg.kv_heads * cfg.head_dim, ("embed", "kv_heads"), "v_proj")(x)
        q, k, v = map(checkpoint_name, (q, k, v), ("query", "key", "value"))
        q = rotate(q.reshape(b, t, cfg.heads, cfg.head_dim), shared["rope"])
        k = rotate(k.reshape(b, t, cfg.kv_heads, cfg.head_dim), shared["rope"])
        v = v.reshape(b, t, cfg.kv_heads, cfg.head_dim)
        kv = {"k": k.swapaxes(1, 2), "v": v.swapaxes(1, 2)}
        if cache:
            cache = write_cache(cache, kv, shared["slot"])
            out = decode_attend(q, cache["k"], cache["v"], shared["mask"])
        else:
            # Parameters are made outside any mesh, where a kernel cannot be partitioned.
            form = "xla" if self.is_initializing() else self.form
            out = packed_attend(q, k, v, shared["segments"], form, reads=cache is not None)
            cache = None if cache is None else kv
        out = out.reshape(b, t, cfg.heads * cfg.head_dim)
        out = linear(d, ("heads", "embed"), "o_proj")(out)
        return checkpoint_name(out, "attention_out"), cache


class Mlp(nn.Module):
    """SwiGLU or GeGLU: down(act(gate x) * up x)."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x):
        cfg = self.cfg
        gate, up = (
            checkpoint_name(linear(cfg.mlp_dim, ("embed", "mlp"), f"{name}_proj")(x), name)
            for name in ("gate", "up")
        )
        h = activation(cfg.act)(gate) * up
        return linear(x.shape[-1], ("mlp", "embed"), "down_proj")(h)


class Experts(nn.Module):
    """Each token through its best few of E SwiGLUs, none dropped: [B, T, D] -> (same, load).

    `load` is what `balance_loss` takes, over the tokens of `real` [B, T] bool (None: all). `form`:
    that of `ops.moe.expert_mlp`.
    """

    cfg: DecoderConfig
    form: str = "auto"

    @nn.compact
    def __call__(self, x, real):
        cfg, (b, t, d) = self.cfg, x.shape
        e, f = cfg.experts.count, cfg.mlp_dim

        def kernel(name, shape, axes):
            def init(key, shape, dtype):  # as `linear`, where the inputs are not the first axis
                return jax.random.normal(key, shape, dtype) * shape[1] ** -0.5

            return as_array(weight(self, name, init, (None, *axes), shape), x.dtype)

        logits = linear(e, ("embed", None), "router")(x)
        weights, chosen, probabilities = route(logits, cfg.experts.per_token)  # [B, T, k or E]
        w_gate = kernel("w_gate", (e, d, f), ("embed", "expert_mlp"))
        w_up = kernel("w_up", (e, d, f), ("embed", "expert_mlp"))
        w_down = kernel("w_down", (e, f, d), ("expert_mlp", "embed"))
        # Parameters are made outside any mesh, where a kernel cannot be partitioned.
        form = "ragged" if self.is_initializing() else self.form
        kernels = w_gate, w_up, w_down
        y = expert_mlp(x, weights, chosen, kernels, activation(cfg.act), form)
        flat = (a.reshape(b * t, -1) for a in (probabilities, chosen))
        return y, router_load(*flat, None if real is None else real.reshape(-1))


class Block(nn.Module):
    """Pre-norm attention and MLP (or experts): [B, T, D] -> the same, {cache, load of experts}."""

    cfg: DecoderConfig
    attention: str = "auto"
    moe: str = "auto"

    @nn.compact
    def __call__(self, x, shared, cache):
        cfg, load = self.cfg, None
        h = norm(cfg, "attn_norm")(x)
        h, cache = Attention(cfg, self.attention, name="attn")(h, shared, cache)
        x = x + h
        h = norm(cfg, "mlp_norm")(x)
        if cfg.experts:
            # Few rows at a time are generated, and they need not divide by a mesh.
            form = "ragged" if cache else self.moe
            h, load = Experts(cfg, form, name="moe")(h, shared["real"])
        else:
            h = Mlp(cfg, name="mlp")(h)
        return split_rows(x + h), {"cache": cache, "load": load}


class Decoder(nn.Module):
    """Input embeddings [B, T, D] -> final-norm states [B, T, D]; `head` gives logits from states.

    Input embeddings are as `embed` returns them: a Gemma's are scaled inside. `attention`: the
    form of `ops.attention.packed_attend`; `moe`: of `ops.moe.expert_mlp`.
    """

    cfg: DecoderConfig
    remat: str = "none"
    scan: bool = True
    attention: str = "auto"
    moe: str = "auto"

    def setup(self):
        cfg = self.cfg
        self.embed = Embed(
            cfg.vocab_size, cfg.dim, ("vocab", "embed"), embedding_init=normal_init(1.0)
        )
        self.layers = stack(Block, cfg.layers, remat=self.remat, scan=self.scan)(
            cfg, self.attention, self.moe
        )
        self.norm = norm(cfg, None)
        if not cfg.tied_embeddings:
            self.lm_head = linear(cfg.vocab_size, ("embed", "vocab"), None)

    def head(self, x):
        """States [..., D] -> logits [..., V]."""
        return self.embed.logits(x) if self.cfg.tied_embeddings else self.lm_head(x)

    def head_kernel(self, dtype):
        """`head`'s kernel and whether that is the embedding: ([D, V], False) or ([V, D], True)."""
        if self.cfg.tied_embeddings:
            return self.embed.embedding.astype(dtype), True
        return self.lm_head.whole_kernel(dtype), False

    def scale(self, x):
        """Embeddings times sqrt(dim), if the config says so, in x's dtype."""
        factor, precise = self.cfg.dim**0.5, jnp.promote_types(x.dtype, jnp.float32)
        if self.cfg.embed_scale == "exact":
            return (x.astype(precise) * factor).astype(x.dtype)
        return x * jnp.asarray(factor, x.dtype) if self.cfg.embed_scale else x

    def _shared(self, x, positions):
        precise = jnp.promote_types(x.dtype, jnp.float32)
        return {"rope": rope_tables(positions, self.cfg.head_dim, self.cfg.rope_theta, precise)}

    def _run(self, x, positions, cache, **shared):
        x, out = self.layers(self.scale(x), shared | self._shared(x, positions), cache)
        return self.norm(x), out

    def __call__(self, x, positions, segments):
        """Packed rows: positions and segments [B, T] (0 = padding).

        Returns (states [B, T, D], load-balancing loss of the experts, float32 [], without its
        coefficient: 0 when there are none).
        """
        shared = {"segments": segments, "real": segments > 0}
        x, out = self._run(x, positions, None, **shared)
        return x, balance_loss(out["load"]) if self.cfg.experts else jnp.zeros((), jnp.float32)

    def read(self, x, positions, segments):
        """`__call__` of prompts -> (states [B, T, D], keys and values {"k", "v"}
        [L, B, K, T, H])."""
        x, out = self._run(x, positions, {}, segments=segments, real=segments > 0)
        return x, out["cache"]

    def extend(self, x, positions, mask, cache, slot):
        """Writes x's T tokens into the cache from `slot` on ([] or [B]), and attends under mask
        [B, T, S]. Returns (states [B, T, D], the new cache).

        The cache is that of `empty_cache`, where the layers may be `unstack`ed too, or for few rows
        that are better compiled once for all layers, one stack of it [L, B, K, S, H].
        """
        shared = {"mask": mask, "slot": slot, "real": None}
        if isinstance(cache, dict):
            x, out = self._run(x, positions, cache, **shared)
            return x, out["cache"]
        layers = self.layers.variables["params"]
        shared |= self._shared(x, positions)
        x, after = self.scale(x), []
        for i, before in enumerate(cache):
            if isinstance(layers, tuple):
                params = layers[i]
            else:  # what is sliced waits for the layer before: a compiler would slice many ahead
                layers, x = jax.lax.optimization_barrier((layers, x))
                params = jax.tree.map(lambda stack, i=i: stack[i], layers)
            block = Block(self.cfg, self.attention, self.moe, parent=None)
            x, out = block.apply({"params": params}, x, shared, before)
            after.append(out["cache"])
        return self.norm(x), tuple(after)
