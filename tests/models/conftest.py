"""The original's tiny LLaMA model, loaded and encoded once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import HERE, views

from mgm_jax.convert.hf import load_hf
from mgm_jax.models.mgm import Mgm


@pytest.fixture(scope="session")
def golden():
    return {k: np.load(HERE / f"{k}.npz") for k in ("inputs", "vision", "lm", "generate", "grads")}


@pytest.fixture(scope="session")
def loaded():
    cfg, params = load_hf(HERE, clip_heads=4)
    return Mgm(cfg), jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="session")
def encode(loaded):
    """Views of three pictures -> (tower features, visual tokens, named intermediates)."""
    model, params = loaded

    @jax.jit
    def run(params, lr, hr):
        features = model.apply({"params": params}, lr, hr, method="encode_views")
        return features, *model.apply({"params": params}, features, method="visual_tokens")

    return lambda lr, hr: run(params, lr, hr)


@pytest.fixture(scope="session")
def encoded(golden, encode):
    return encode(*views(golden["inputs"]))


@pytest.fixture(scope="session")
def features(encoded):
    return encoded[0]
