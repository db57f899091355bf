"""The whole model restated in numpy, float64, loop by loop and in the literal (unfused) form.

Written from MGM_SPEC 1.3 to 2.6 over the tensors in the original's names and layouts; one picture
and one text row. `eps` maps clip, convnext, mining, llm to their epsilons.
"""

import numpy as np
from scipy.special import erf

TOWER = "model.vision_tower.vision_tower.vision_model."
AUX = "model.vision_tower_aux."


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attention(q, k, v, heads, mask=None):
    """q, k, v [T, heads * H] -> [T, heads * H]."""
    q, k, v = (a.reshape(len(a), heads, -1).swapaxes(0, 1) for a in (q, k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    return (softmax(scores) @ v).swapaxes(0, 1).reshape(q.shape[1], -1)


def strided_conv(x, weight, bias=0.0):
    """[H, W, C] with a kernel [out, C, p, p] of stride p -> [H/p, W/p, out]."""
    p = weight.shape[-1]
    out = np.zeros((x.shape[0] // p, x.shape[1] // p, len(weight)))
    for i, j in np.ndindex(*out.shape[:2]):
        patch = x[i * p : (i + 1) * p, j * p : (j + 1) * p]
        out[i, j] = np.einsum("xyc,ocxy->o", patch, weight)
    return out + bias


def upsample(x, size):
    """Bilinear, half-pixel centres, clamped at the border: [n, n, C] -> [size, size, C]."""
    n = len(x)
    taps = np.zeros((size, n))
    for i in range(size):
        position = max((i + 0.5) * n / size - 0.5, 0)
        low = min(int(position), n - 1)
        taps[i, low] += 1 - (position - low)
        taps[i, min(low + 1, n - 1)] += position - low
    return np.einsum("ip,jq,pqc->ijc", taps, taps, x)


class Reference:
    def __init__(self, tensors, eps, *, clip_heads, clip_layers, heads, theta):
        self.t = {k: np.asarray(v, np.float64) for k, v in tensors.items()}
        self.eps, self.clip_heads, self.clip_layers = eps, clip_heads, clip_layers
        self.heads, self.theta = heads, theta

    def linear(self, x, name):
        y = x @ self.t[f"{name}.weight"].T
        return y + self.t[f"{name}.bias"] if f"{name}.bias" in self.t else y

    def layer_norm(self, x, name, part):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps[part])
        return x * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def rms_norm(self, x, name):
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps["llm"])
        return x * self.t[f"{name}.weight"]

    def clip(self, lr):
        """[h, w, 3] -> [N, C] after `clip_layers` blocks, without the class token."""
        x = strided_conv(lr, self.t[f"{TOWER}embeddings.patch_embedding.weight"])
        x = x.reshape(-1, x.shape[-1])
        x = np.vstack([self.t[f"{TOWER}embeddings.class_embedding"], x])
        x = x + self.t[f"{TOWER}embeddings.position_embedding.weight"]
        x = self.layer_norm(x, f"{TOWER}pre_layrnorm", "clip")
        for i in range(self.clip_layers):
            layer = f"{TOWER}encoder.layers.{i}."
            y = self.layer_norm(x, f"{layer}layer_norm1", "clip")
            q, k, v = (self.linear(y, f"{layer}self_attn.{n}_proj") for n in "qkv")
            y = attention(q, k, v, self.clip_heads)
            x = x + self.linear(y, f"{layer}self_attn.out_proj")
            y = self.layer_norm(x, f"{layer}layer_norm2", "clip")
            y = self.linear(y, f"{layer}mlp.fc1")
            x = x + self.linear(y * sigmoid(1.702 * y), f"{layer}mlp.fc2")
        return x[1:]

    def convnext_block(self, x, name):
        taps, (h, w, _) = self.t[f"{name}.conv_dw.weight"], x.shape
        k = taps.shape[-1]
        padded = np.pad(x, [(k // 2, k // 2), (k // 2, k // 2), (0, 0)])
        y = np.zeros_like(x) + self.t[f"{name}.conv_dw.bias"]
        for i, j in np.ndindex(k, k):
            y += padded[i : i + h, j : j + w] * taps[:, 0, i, j]
        y = self.layer_norm(y, f"{name}.norm", "convnext")
        y = self.linear(gelu(self.linear(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        return x + y * self.t[f"{name}.gamma"]

    def convnext(self, hr):
        """[H, W, 3] -> the fused map [h, w, C]."""
        x = strided_conv(hr, *(self.t[f"{AUX}vision_stem.0.{p}"] for p in ("weight", "bias")))
        x = self.layer_norm(x, f"{AUX}vision_stem.1", "convnext")
        stages, s = [], 0
        while f"{AUX}vision_stages.{s}.blocks.0.gamma" in self.t:
            stage = f"{AUX}vision_stages.{s}"
            if s:
                x = self.layer_norm(x, f"{stage}.downsample.0", "convnext")
                down = f"{stage}.downsample.1"
                x = strided_conv(x, self.t[f"{down}.weight"], self.t[f"{down}.bias"])
            block = 0
            while f"{stage}.blocks.{block}.gamma" in self.t:
                x = self.convnext_block(x, f"{stage}.blocks.{block}")
                block += 1
            stages.append(x)
            s += 1
        return np.concatenate([upsample(x, len(stages[0])) for x in stages], axis=-1)

    def mine(self, x, hr_map):
        """One query at a time, over keys and values of its whole region."""
        grid = int(np.sqrt(len(x)))
        side, mined = len(hr_map) // grid, []

        def project(y, name):
            name = f"model.vlm_uni_{name}_projector."
            return self.linear(self.layer_norm(y, f"{name}0", "mining"), f"{name}1")

        for n, query in enumerate(x):
            i, j = n // grid * side, n % grid * side
            region = hr_map[i : i + side, j : j + side].reshape(side * side, -1)
            k, v = project(region, "aux"), project(region, "val")
            mined.append(softmax(k @ project(query, "query") / np.sqrt(k.shape[-1])) @ v)
        return np.array(mined)

    def image_features(self, lr, hr):
        x = self.clip(lr)
        x = x + self.mine(x, self.convnext(hr))
        return self.linear(gelu(self.linear(x, "model.mm_projector.0")), "model.mm_projector.2")

    def rope(self, x):
        """[T, heads * H] rotated by 0, 1, 2, ..."""
        t, half = len(x), x.shape[-1] // self.heads // 2
        angles = np.arange(t)[:, None] / self.theta ** (np.arange(half) / half)
        turn = np.exp(1j * angles)[:, None]
        x = x.reshape(t, self.heads, 2, half)
        turned = (x[:, :, 0] + 1j * x[:, :, 1]) * turn
        return np.stack([turned.real, turned.imag], axis=2).reshape(t, -1)

    def logits(self, ids, lr, hr):
        """ids with -200 for the picture -> [T, V]."""
        table, at = self.t["model.embed_tokens.weight"], list(ids).index(-200)
        x = np.vstack([table[ids[:at]], self.image_features(lr, hr), table[ids[at + 1 :]]])
        causal = np.tril(np.ones((len(x), len(x)), bool))
        i = 0
        while f"model.layers.{i}.input_layernorm.weight" in self.t:
            layer = f"model.layers.{i}."
            y = self.rms_norm(x, f"{layer}input_layernorm")
            q, k, v = (self.linear(y, f"{layer}self_attn.{n}_proj") for n in "qkv")
            y = attention(self.rope(q), self.rope(k), v, self.heads, causal)
            x = x + self.linear(y, f"{layer}self_attn.o_proj")
            y = self.rms_norm(x, f"{layer}post_attention_layernorm")
            gate, up = (self.linear(y, f"{layer}mlp.{n}_proj") for n in ("gate", "up"))
            x = x + self.linear(gate * sigmoid(gate) * up, f"{layer}mlp.down_proj")
            i += 1
        return self.linear(self.rms_norm(x, "model.norm"), "lm_head")
