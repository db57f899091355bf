"""ConvNeXt's MLPs by parts of the rows, as a CPU does them: the same numbers (1e-6) as at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgm_jax.models import convnext
from mgm_jax.models.config import ConvNextConfig
from mgm_jax.tree import flatten

CFG = ConvNextConfig(widths=(8, 16), depths=(2, 3), patch_size=4, kernel_size=3, norm_eps=1e-6)
PICTURES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)


def run(params):
    """Value, gradients, and loops of the program."""
    model = convnext.ConvNext(CFG, gamma_init=0.5)

    def loss(params):
        stages = model.apply({"params": params}, PICTURES)
        return sum(jnp.sum(jnp.sin(stage)) for stage in stages)

    step = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    return *step(params), step.as_text().count(" while(")


def test_parts_change_nothing(monkeypatch):
    init = convnext.ConvNext(CFG, gamma_init=0.5).init(jax.random.key(0), PICTURES)
    params = nn.unbox(init)["params"]
    value, grads, loops = run(params)
    # Hidden layers of 64 and 32 KiB: four parts of the first stage, two of the second.
    monkeypatch.setattr(convnext, "HIDDEN", 16 << 10)
    by_parts, their_grads, their_loops = run(params)
    assert their_loops > loops
    np.testing.assert_allclose(by_parts, value, rtol=1e-6)
    expected = flatten(grads)
    for name, grad in flatten(their_grads).items():
        atol = 1e-6 * np.abs(expected[name]).max()
        np.testing.assert_allclose(grad, expected[name], rtol=0, atol=atol, err_msg=name)
