"""GELU by a tanh, in bfloat16, against the error function in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from mgm_jax.ops.activations import activation

X = jnp.concatenate([jnp.linspace(-40, 40, 4001), jnp.linspace(-6, 6, 4001)])


def exact(x):
    x = np.asarray(x, np.float64)
    return x * (1 + erf(x / 2**0.5)) / 2


def test_float32_is_exact():
    np.testing.assert_allclose(activation("gelu")(X), exact(X), rtol=2e-6, atol=1e-6)


def test_bfloat16_is_within_its_rounding():
    x = X.astype(jnp.bfloat16)
    found = activation("gelu")(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float64), exact(x), rtol=2**-8, atol=3e-5)


@pytest.mark.parametrize("value", [0.0, 1e4, -1e4, 3e38, -3e38])
def test_bfloat16_is_finite(value):
    x = jnp.asarray(value, jnp.bfloat16)
    assert activation("gelu")(x) == (x if value > 0 else 0)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="activation 'swish' is unknown, expected one of"):
        activation("swish")
