"""An adapter that a run of a few steps has made of the tiny base."""

import numpy as np
import pytest

from mgm_jax import train


@pytest.fixture(scope="session")
def lora_config(tiny_config, tiny_base):
    """(**{"dotted__key": value}) -> the config of a LoRA run on `tiny_base`."""
    from mgm_jax.configs import lora

    def make(**values):
        c = tiny_config()
        c.model = None
        c.init = [(".*", str(tiny_base))]
        lora.with_lora(c, 4)
        c.optim.lr = 1e-2
        for key, value in values.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
        return c

    return make


@pytest.fixture(scope="session")
def trained(lora_config, tmp_path_factory):
    """The workdir of a LoRA run; its adapter is in model/."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    train.train(lora_config(), workdir)
    return workdir


@pytest.fixture(scope="session")
def batch():
    """Two rows of text, [B, T]."""
    ids = np.random.default_rng(0).integers(3, 500, size=(2, 9)).astype(np.int32)
    places = np.broadcast_to(np.arange(9, dtype=np.int32), ids.shape)
    return {"tokens": ids, "positions": places, "segments": np.ones_like(ids)}
