"""Mini-Gemini: two encoders, patch info mining, projector, language model (MGM_SPEC 2).

B rows, T tokens, G groups of rows with M picture slots each, P = G*M pictures, R views of a picture
(g*g crops and the global one; 1 without HD) of n tokens, N = R*n visual tokens a picture,
D language-model width, C vision width. The batch is a dict; see ARCHITECTURE, batch
contract: tokens, positions, segments, visual_index [B, T]; images uint8 [G, M, H, W, 3], or in
their place `features`, what `tower_features` gave for them.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.convnext import ConvNext, fuse_stages
from mgm_jax.models.decoder import Decoder, unstack, write_cache
from mgm_jax.models.mining import PatchInfoMining
from mgm_jax.models.projector import Projector
from mgm_jax.nn.layout import pad_slots, slot_parts, split_pictures, split_rows
from mgm_jax.ops.loss import head_losses
from mgm_jax.ops.merge import place_images
from mgm_jax.ops.resize import join_crops, split_crops
from mgm_jax.ops.views import views, whole_view


class Mgm(nn.Module):
    """The whole model. `dtype` is the compute dtype; parameters keep their own. `drop_path`: see
    `ConvNext`; `attention` and `moe`: see `Decoder`. `tower_batch`: pictures that a device works on
    at a time, which saves memory (None: all of its pictures)."""

    cfg: MgmConfig
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    drop_path: float = 0.0
    attention: str = "auto"
    moe: str = "auto"
    tower_batch: int | None = None

    def setup(self):
        cfg = self.cfg
        self.clip = ClipVit(cfg.clip, scan=self.scan)
        if cfg.convnext:
            self.convnext = ConvNext(cfg.convnext, scan=self.scan, drop_path=self.drop_path)
            self.mining = PatchInfoMining(cfg.convnext.channels, cfg.clip.width, cfg.mining_eps)
        self.projector = Projector(cfg.projector, cfg.llm.dim)
        forms = {"attention": self.attention, "moe": self.moe}
        self.llm = Decoder(cfg.llm, remat=self.remat, scan=self.scan, **forms)

    # --- pictures -> visual tokens ---

    def tower_features(self, images):
        """uint8 pictures [P, H, W, 3] -> {"clip": [P, N, C], "convnext": stage maps}."""
        lr, hr = views(split_pictures(images), self.cfg.image)
        return self.encode_views(lr, hr)

    def look(self, images):
        """uint8 pictures [P, H, W, 3] -> their visual tokens [P, N, D]."""
        return self.visual_tokens(self.tower_features(images))[0]

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
        x = features["clip"]
        p, _, c = x.shape
        out = {"clip_features": x}

        def in_order(y):  # [P, R, n, ...] -> [P, N, ...]
            y = jnp.roll(y, 1, axis=1) if self.cfg.image.use_global else y
            return y.reshape(p, -1, y.shape[-1])

        x = x.reshape(p, self.cfg.image.crops, -1, c)
        tokens = in_order(x)
        if self.cfg.convnext:
            mined, weights = (in_order(y) for y in self.mine(x, features["convnext"]))
            tokens = tokens + mined
            out |= {"convnext_map": fuse_stages(features["convnext"])}
            out |= {"mined": mined, "mining_weights": weights}
        out["tokens"] = tokens
        return self.projector(tokens), out

    def mine(self, x, stages):
        """CLIP features [P, R, n, C] and ConvNeXt's stage maps -> what each view mines in its part
        of the maps: [P, R, n, C], and its weights [P, R, n, S]."""
        spec, (p, _, n, c) = self.cfg.image, x.shape
        side, crops = int(n**0.5), spec.grid**2
        # The crops' regions are those of the whole picture, with queries in a grid of grids.
        queries = join_crops(x[:, :crops].reshape(p, crops, side, side, c), spec.grid)
        found = self.mining(queries.reshape(p, -1, c), stages)
        grid = (p, spec.grid * side, spec.grid * side, -1)
        found = [split_crops(y.reshape(grid), spec.grid).reshape(p, crops, n, -1) for y in found]
        if spec.use_global:
            own = self.mining(x[:, -1], whole_view(stages, spec.grid))
            found = [
                jnp.concatenate([y, z[:, None]], axis=1) for y, z in zip(found, own, strict=True)
            ]
        return found

    def input_embeddings(self, batch):
        """Text embeddings with the visual tokens in their places: ([B, T, D], intermediates).

        A batch with neither `images` nor `features` is text only; one with `visual` [G, M, N, D]
        has its visual tokens already, one with `embeddings` what is returned.
        """
        if "embeddings" in batch:
            return batch["embeddings"], {}
        text = self.llm.embed(batch["tokens"], self.dtype)
        if "visual" in batch:
            placed = place_images(text, batch["visual"], batch["visual_index"])
            return split_rows(placed), {}
        if not {"features", "images"} & batch.keys():
            return text, {}
        if "images" in batch:
            return self._place_pictures(text, batch)
        features = {k: _cast(v, self.dtype) for k, v in batch["features"].items()}
        groups = batch["features"]["clip"].shape[0]
        features = {k: _merge_groups(v) for k, v in features.items()}
        tokens, out = self.visual_tokens(features)
        pool = tokens.reshape(groups, -1, *tokens.shape[1:])  # [G, M, N, D]
        out["image_features"] = tokens
        return split_rows(place_images(text, pool, batch["visual_index"])), out

    def _place_pictures(self, text, batch):
        """`input_embeddings` of a batch with `images`, some slots of each group at a time."""
        groups, slots = batch["images"].shape[:2]
        parts = 1 if self.is_initializing() else slot_parts(groups, slots, self.tower_batch)
        images = pad_slots(batch["images"], parts)  # [G, M', H, W, 3]

        def encode(self, images):
            features = self.tower_features(images.reshape(-1, *images.shape[2:]))
            read = _again(Mgm.visual_tokens) if parts > 1 else Mgm.visual_tokens
            tokens, out = read(self, features)
            return out | {"image_features": tokens}

        if parts == 1:
            out = encode(self, images)
            out = jax.tree.map(lambda y: _groups(y, groups), out)
        else:
            images = images.reshape(groups, parts, -1, *images.shape[2:]).swapaxes(0, 1)
            scanned = nn.scan(
                lambda self, _, images: (None, encode(self, images)),
                variable_broadcast="params",
                split_rngs={"params": False, "drop_path": True, "dropout": True},
            )
            _, out = scanned(self, None, images)
            out = jax.tree.map(lambda y: _join_parts(y, groups), out)
        pool = out["image_features"]  # [G, M', N, D]
        out = jax.tree.map(lambda y: _merge_groups(y[:, :slots]), out)
        return split_rows(place_images(text, pool, batch["visual_index"])), out

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
        kernel, tied = self.llm.head_kernel(x.dtype)
        losses = head_losses(x, kernel, batch["targets"], batch["loss_weights"] != 0, tied)
        weights = batch["loss_weights"].astype(losses.dtype)
        total, weight = jnp.sum(losses * weights), weights.sum()
        if self.cfg.llm.experts and self.cfg.llm.experts.router_loss:
            total += self.cfg.llm.experts.router_loss * router_loss * weight
        return total, weight

    def read(self, batch):
        """Right-padded prompts -> (logits after each row's last token [B, V], keys and values
        {"k", "v"} [L, B, K, T, H])."""
        x, _ = self.input_embeddings(batch)
        x, kv = self.llm.read(x, batch["positions"], batch["segments"])
        return self.llm.head(_last(x, batch["segments"])), kv

    def read_on(self, batch, cache):
        """`read` of what follows rows of a cache [L, B, K, S, H] that hold the tokens before the
        batch's `positions` -> (logits [B, V], the cache, stacked as it is)."""
        x, _ = self.input_embeddings(batch)
        positions = batch["positions"]
        mask = jnp.arange(cache["k"].shape[3]) <= positions[:, :, None]  # [B, T, S]
        x, cache = self.llm.extend(x, positions, mask, cache, positions[:, 0])
        return self.llm.head(_last(x, batch["segments"])), cache

    def prefill(self, batch, cache):
        """`read` into the first slots of a cache: -> (logits [B, V], cache)."""
        logits, kv = self.read(batch)
        layers = zip(cache, unstack(kv, self.cfg.llm.layers), strict=True)
        return logits, tuple(write_cache(old, new, 0) for old, new in layers)

    def decode(self, tokens, positions, mask, cache, slot):
        """A step: tokens, positions [B] at cache `slot` ([] or [B]), mask [B, S] -> (logits [B, V],
        cache)."""
        x = self.llm.embed(tokens[:, None], self.dtype)
        x, cache = self.llm.extend(x, positions[:, None], mask[:, None], cache, slot)
        return self.llm.head(x[:, 0]), cache


def _last(x, segments):
    """[B, T, D] -> [B, D]: each row's last token."""
    last = (segments > 0).sum(-1) - 1
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]


def _cast(x, dtype):
    return tuple(y.astype(dtype) for y in x) if isinstance(x, tuple) else x.astype(dtype)


def _merge_groups(x):
    if isinstance(x, tuple):
        return tuple(_merge_groups(y) for y in x)
    return x.reshape(-1, *x.shape[2:])


_again = functools.partial(nn.remat, prevent_cse=False)  # the towers' maps are kept, and no more


def _groups(x, groups: int):
    """[G*M, ...] -> [G, M, ...]."""
    return x.reshape(groups, -1, *x.shape[1:])


def _join_parts(x, groups: int):
    """[parts, G*m, ...] -> [G, parts*m, ...]."""
    x = x.reshape(x.shape[0], groups, -1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(groups, -1, *x.shape[3:])
