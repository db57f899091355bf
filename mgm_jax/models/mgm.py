"""Mini-Gemini: two encoders, patch info mining, projector, language model (MGM_SPEC 2).

B rows, T tokens, G groups of rows with M picture slots each, P = G*M pictures, R views of a picture
(g*g crops and the global one; 1 without HD) of n tokens, N = R*n visual tokens a picture,
D language-model width, C vision width. The batch is a dict; see ARCHITECTURE, batch
contract: tokens, positions, segments, visual_index [B, T]; images uint8 [G, M, H, W, 3], or in
their place `features`, what `tower_features` gave for them.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.convnext import ConvNext, fuse_stages
from mgm_jax.models.decoder import Decoder
from mgm_jax.models.mining import PatchInfoMining
from mgm_jax.models.projector import Projector
from mgm_jax.ops.loss import chunked_loss
from mgm_jax.ops.merge import place_images
from mgm_jax.ops.views import pack_views, views


class Mgm(nn.Module):
    """The whole model. `dtype` is the compute dtype; parameters keep their own. `drop_path`: see
    `ConvNext`."""

    cfg: MgmConfig
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    drop_path: float = 0.0

    def setup(self):
        cfg = self.cfg
        self.clip = ClipVit(cfg.clip, scan=self.scan)
        if cfg.convnext:
            self.convnext = ConvNext(cfg.convnext, scan=self.scan, drop_path=self.drop_path)
            self.mining = PatchInfoMining(cfg.convnext.channels, cfg.clip.width, cfg.mining_eps)
        self.projector = Projector(cfg.projector, cfg.llm.dim)
        self.llm = Decoder(cfg.llm, remat=self.remat, scan=self.scan)

    # --- pictures -> visual tokens ---

    def tower_features(self, images):
        """uint8 pictures [P, H, W, 3] -> {"clip": [P, N, C], "convnext": stage maps}."""
        lr, hr = views(images, self.cfg.image)
        return self.encode_views(lr, hr)

    def encode_views(self, lr, hr):
        """The same from normalised views, any float dtype: hr [P, H, W, 3]; lr [P, h, w, 3], or
        [P, R, h, w, 3] for a grid of crops, where N = R*n tokens come view by view."""
        clip = self.clip(lr.reshape(-1, *lr.shape[-3:]).astype(self.dtype))  # [P*R, n, C]
        features = {"clip": clip.reshape(len(lr), -1, clip.shape[-1])}
        if self.cfg.convnext:
            features["convnext"] = self.convnext(hr.astype(self.dtype))
        return features

    def visual_tokens(self, features):
        """Tower features -> (tokens [P, N, D], named intermediates).

        Each view is mined in its own part of the HR map. The global view's tokens come first, then
        each crop's (MGM_SPEC 2.2): so in every intermediate but `clip_features`, whose global view
        is the last one, as in the pictures.
        """
        spec, x = self.cfg.image, features["clip"]
        p, _, c = x.shape
        out = {"clip_features": x}

        def in_order(y):  # [P*R, n, ...] -> [P, N, ...]
            y = y.reshape(p, spec.crops, -1, y.shape[-1])
            y = jnp.roll(y, 1, axis=1) if spec.use_global else y
            return y.reshape(p, -1, y.shape[-1])

        x = x.reshape(p * spec.crops, -1, c)
        tokens = in_order(x)
        if self.cfg.convnext:
            hr_map = fuse_stages(features["convnext"])  # [P, g*h, g*w, C']
            maps = pack_views(hr_map, spec)  # [P, R, h, w, C']
            mined, weights = self.mining(x, maps.reshape(-1, *maps.shape[2:]))
            mined = in_order(mined)
            tokens = tokens + mined
            out |= {"convnext_map": hr_map, "mined": mined, "mining_weights": in_order(weights)}
        out["tokens"] = tokens
        return self.projector(tokens), out

    def input_embeddings(self, batch):
        """Text embeddings with the visual tokens in their places: ([B, T, D], intermediates).

        A batch with neither `images` nor `features` is text only.
        """
        text = self.llm.embed(batch["tokens"], self.dtype)
        if not {"features", "images"} & batch.keys():
            return text, {}
        if "features" in batch:
            features = {k: _cast(v, self.dtype) for k, v in batch["features"].items()}
            groups = batch["features"]["clip"].shape[0]
            features = {k: _merge_groups(v) for k, v in features.items()}
        else:
            images = batch["images"]
            groups = images.shape[0]
            features = self.tower_features(images.reshape(-1, *images.shape[2:]))
        tokens, out = self.visual_tokens(features)
        pool = tokens.reshape(groups, -1, *tokens.shape[1:])  # [G, M, N, D]
        out["image_features"] = tokens
        return place_images(text, pool, batch["visual_index"]), out

    # --- the language model ---

    def __call__(self, batch):
        """-> (logits [B, T, V], named intermediates)."""
        x, out = self.input_embeddings(batch)
        out["inputs_embeds"] = x
        x, out["router_loss"] = self.llm(x, batch["positions"], batch["segments"])
        return self.llm.head(x), out

    def loss(self, batch):
        """-> (sum of weighted next-token losses, sum of weights), float32 (MGM_SPEC 2.5).

        The ratio of the two is the loss; a router loss with its coefficient is part of it.
        """
        x, _ = self.input_embeddings(batch)
        x, router_loss = self.llm(x, batch["positions"], batch["segments"])
        total, weight = chunked_loss(self.llm.head, x, batch["targets"], batch["loss_weights"])
        if self.cfg.llm.experts and self.cfg.llm.experts.router_loss:
            total += self.cfg.llm.experts.router_loss * router_loss * weight
        return total, weight

    def prefill(self, batch, cache):
        """Reads right-padded prompts [B, T] into an empty cache [.., S >= T, ..].

        Returns (logits after each row's last token [B, V], cache).
        """
        x, _ = self.input_embeddings(batch)
        segments = batch["segments"]
        total = cache["k"].shape[2]
        t = segments.shape[1]
        causal = jnp.arange(total) <= jnp.arange(t)[:, None]  # [T, S]
        x, cache = self.llm.extend(x, batch["positions"], causal[None], cache, 0)
        last = (segments > 0).sum(-1) - 1
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return self.llm.head(x), cache

    def decode(self, tokens, positions, mask, cache, slot):
        """A step: tokens, positions [B] at cache `slot`, mask [B, S] -> (logits [B, V], cache)."""
        x = self.llm.embed(tokens[:, None], self.dtype)
        x, cache = self.llm.extend(x, positions[:, None], mask[:, None], cache, slot)
        return self.llm.head(x[:, 0]), cache


def _cast(x, dtype):
    return tuple(y.astype(dtype) for y in x) if isinstance(x, tuple) else x.astype(dtype)


def _merge_groups(x):
    if isinstance(x, tuple):
        return tuple(_merge_groups(y) for y in x)
    return x.reshape(-1, *x.shape[2:])
