"""A tiny ViT in big_vision's keys, its forward pass in numpy, and the ways old files store it."""

import math

import numpy as np

from mgm_jax.convert.readers import open_source
from tests.convert.conftest import same

LAYERS, D, N, H, F, P, SIDE = 3, 24, 3, 8, 40, 4, 5
ATTENTION = "MultiHeadDotProductAttention_0"


def arrays(*, cls=False, head=False, side=SIDE, dtype=np.float32, seed=0):
    """Name -> array of the loop layout; every number random, scales around 1."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding/kernel": (P, P, 3, D),
        "embedding/bias": (D,),
        "pos_embedding": (1, side * side, D),
        "Transformer/encoder_norm/scale": (D,),
        "Transformer/encoder_norm/bias": (D,),
    }
    if cls:
        shapes["cls"] = (1, 1, D)
    blocks = [f"Transformer/encoderblock_{i}/" for i in range(LAYERS)]
    if head:
        shapes |= {"MAPHead_0/probe": (1, 1, D), "head/kernel": (D, 7), "head/bias": (7,)}
    for block in blocks + (["MAPHead_0/"] if head else []):
        norms = (0, 1) if block != "MAPHead_0/" else (0,)
        for i in norms:
            shapes |= {f"{block}LayerNorm_{i}/{leaf}": (D,) for leaf in ("scale", "bias")}
        for name in ("query", "key", "value"):
            shapes[f"{block}{ATTENTION}/{name}/kernel"] = (D, N, H)
            shapes[f"{block}{ATTENTION}/{name}/bias"] = (N, H)
        shapes[f"{block}{ATTENTION}/out/kernel"] = (N, H, D)
        shapes[f"{block}{ATTENTION}/out/bias"] = (D,)
        for i, (a, b) in enumerate(((D, F), (F, D))):
            shapes[f"{block}MlpBlock_0/Dense_{i}/kernel"] = (a, b)
            shapes[f"{block}MlpBlock_0/Dense_{i}/bias"] = (b,)
    found = {n: rng.normal(scale=0.3, size=s) + n.endswith("scale") for n, s in shapes.items()}
    return {n: a.astype(dtype) for n, a in found.items()}


def stacked(tensors):
    """The scan layout: blocks as one array over layers."""
    found = {}
    for name, array in tensors.items():
        if "encoderblock_0/" in name:
            layers = [tensors[name.replace("_0/", f"_{i}/", 1)] for i in range(LAYERS)]
            found[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
        elif "encoderblock_" not in name:
            found[name] = array
    return found


def before_linen(tensors):
    """The numbering of modules in files from before Flax's Linen."""
    changes = {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3", ATTENTION: "M_1"}
    found = {}
    for name, array in tensors.items():
        for new, old in changes.items():
            if "encoderblock" in name:
                name = name.replace(f"/{new}/", f"/{old.replace('M_', ATTENTION[:-1])}/")
        found[name] = array
    return found


def norm(x, scale, bias):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * scale + bias


def forward(t, pictures, *, layers=LAYERS):
    """pictures [B, S, S, 3] -> tokens [B, G, D] in float64; the final norm after all layers."""
    t = {n: np.asarray(a, np.float64) for n, a in t.items()}
    side = pictures.shape[1] // P
    x = np.zeros((len(pictures), side, side, D))
    for row in range(side):
        for column in range(side):
            piece = pictures[:, row * P : (row + 1) * P, column * P : (column + 1) * P]
            x[:, row, column] = np.einsum("bhwc,hwcd->bd", piece, t["embedding/kernel"])
    x = (x + t["embedding/bias"]).reshape(len(x), side * side, D) + t["pos_embedding"]
    if "cls" in t:
        x = np.concatenate([np.repeat(t["cls"], len(x), 0), x], 1)
    for i in range(layers):
        b = {n.split(f"encoderblock_{i}/")[1]: a for n, a in t.items() if f"encoderblock_{i}/" in n}
        a = {n.removeprefix(ATTENTION + "/"): v for n, v in b.items() if ATTENTION in n}
        y = norm(x, b["LayerNorm_0/scale"], b["LayerNorm_0/bias"])
        q, k, v = (
            np.einsum("btd,dnh->btnh", y, a[f"{w}/kernel"]) + a[f"{w}/bias"]
            for w in ("query", "key", "value")
        )
        scores = np.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(H)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.einsum("bnts,bsnh->btnh", scores / scores.sum(-1, keepdims=True), v)
        x = x + np.einsum("btnh,nhd->btd", y, a["out/kernel"]) + a["out/bias"]
        y = norm(x, b["LayerNorm_1/scale"], b["LayerNorm_1/bias"])
        y = y @ b["MlpBlock_0/Dense_0/kernel"] + b["MlpBlock_0/Dense_0/bias"]
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + y @ b["MlpBlock_0/Dense_1/kernel"] + b["MlpBlock_0/Dense_1/bias"]
    if layers == LAYERS:
        x = norm(x, t["Transformer/encoder_norm/scale"], t["Transformer/encoder_norm/bias"])
    return x[:, 1:] if "cls" in t else x


def write(file, tensors, prefix=""):
    np.savez(file, **{prefix + n: a for n, a in tensors.items()})
    return file


def read(file):
    source = open_source(file)
    return {n: source.read(n) for n in source}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert same(np.asarray(found[name]), array), name
