"""Patch info mining as a module: three LayerNorm + Linear pairs around `ops.mining`."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from mgm_jax.nn.linear import Linear, torch_linear_init
from mgm_jax.nn.norms import LayerNorm
from mgm_jax.ops.mining import mine


class QueryProjection(nn.Module):
    """LayerNorm, then Linear, applied literally: [B, N, C] -> [B, N, features]."""

    features: int
    eps: float

    @nn.compact
    def __call__(self, x):
        x = LayerNorm(self.eps, name="norm")(x)
        return Linear(self.features, ("vis_embed", "vis_heads"), name="proj")(x)


class RegionProjection(nn.Module):
    """The parameters of LayerNorm + Linear over the C channels of the map, to be re-associated."""

    channels: int
    features: int

    def setup(self):
        def vector(init, size):
            return nn.with_logical_partitioning(init, (None,)), (size,)

        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        matrix = nn.with_logical_partitioning(torch_linear_init, ("conv_in", "vis_heads"))
        self.norm_scale = self.param("norm_scale", *vector(ones, self.channels))
        self.norm_bias = self.param("norm_bias", *vector(zeros, self.channels))
        self.kernel = self.param("kernel", matrix, (self.channels, self.features))
        self.bias = self.param("bias", *vector(zeros, self.features))

    def pull_back(self, q):
        """q [B, N, features] -> g * W^T q [B, N, C]: what is dotted with the standardised map."""
        return jnp.dot(q, self.kernel.T.astype(q.dtype)) * self.norm_scale.astype(q.dtype)

    def project(self, z):
        """z [B, N, C], sums of the standardised map -> W (g * z + b) + bias [B, N, features]."""
        z = z * self.norm_scale.astype(z.dtype) + self.norm_bias.astype(z.dtype)
        return jnp.dot(z, self.kernel.astype(z.dtype)) + self.bias.astype(z.dtype)


class PatchInfoMining(nn.Module):
    """x [B, N, D], maps [B, h_i, w_i, c_i] each -> (mined [B, N, D], weights [B, N, S]).

    The map that is mined is the concatenation of `maps`, each resized to the first; `channels` is
    the sum of c_i, and S = (h_0 * w_0) / N. See `ops.mining.mine`.
    """

    channels: int
    features: int
    eps: float

    @nn.compact
    def __call__(self, x, maps):
        key = RegionProjection(self.channels, self.features, name="key")
        value = RegionProjection(self.channels, self.features, name="value")
        q = QueryProjection(self.features, self.eps, name="query")(x)
        sums, weights = mine(key.pull_back(q), maps, self.features**-0.5, self.eps)
        return value.project(sums), weights
