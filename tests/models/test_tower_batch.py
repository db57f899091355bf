"""Pictures in parts: the same loss and gradients as all at once (1e-6, of the largest gradient)."""

import flax.linen as nn
import jax
import numpy as np

from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.program import abstract_model
from mgm_jax.tree import flatten
from tests.conftest import TINY


def test_parts_change_nothing():
    cfg, rng = MgmConfig.from_dict(TINY), np.random.default_rng(0)
    groups, slots, n = 2, 5, cfg.visual_tokens  # five slots: the last of three parts is padded
    t = slots * n + 3
    index = np.tile(np.arange(t) - 1, (groups, 1))
    batch = {
        "tokens": rng.integers(0, cfg.llm.vocab_size, (groups, t)),
        "targets": rng.integers(0, cfg.llm.vocab_size, (groups, t)),
        "loss_weights": np.ones((groups, t), np.float32),
        "positions": np.tile(np.arange(t), (groups, 1)),
        "segments": np.ones((groups, t), np.int32),
        "visual_index": np.where(index < slots * n, index, -1),
        "images": rng.integers(
            0, 256, (groups, slots, *[cfg.image.hr_size] * 2, 3), dtype=np.uint8
        ),
    }
    model, example, _, _ = abstract_model(cfg)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), example))["params"]

    def loss(params, tower_batch):
        model = Mgm(cfg, tower_batch=tower_batch)
        return model.apply({"params": params}, batch, method="loss")[0]

    found = [jax.jit(jax.value_and_grad(lambda p, k=k: loss(p, k)))(params) for k in (None, 4)]
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    expected = flatten(found[0][1])
    largest = max(np.abs(g).max() for g in expected.values())
    for name, grad in flatten(found[1][1]).items():
        np.testing.assert_allclose(grad, expected[name], atol=1e-6 * largest, err_msg=name)
    assert max(np.abs(g).max() for n, g in expected.items() if n.startswith("mining/")) > 0
