"""The attention kernel against plain attention: values and gradients, float32, interpreted."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mgm_jax.ops.attention import packed_attend


def case(b, t, heads, kv, h, seed=0):
    rng = np.random.default_rng(seed)
    q, g = rng.normal(size=(2, b, t, heads, h)).astype(np.float32)
    k, v = rng.normal(size=(2, b, t, kv, h)).astype(np.float32)
    ends = np.sort(rng.choice(np.arange(1, t), (3,), replace=False))
    segments = np.searchsorted(ends, np.arange(t), side="right") + 1
    segments = np.where(segments > 3, 0, segments)  # the last part is padding
    return q, k, v, np.broadcast_to(segments, (b, t)).astype(np.int32), g


def pull(form, q, k, v, segments, g):
    value, back = jax.vjp(lambda *a: packed_attend(*a, segments, form), q, k, v)
    return value, *back(g)


@pytest.mark.parametrize(
    "shape", [(1, 256, 4, 2, 64), (2, 200, 2, 1, 128), (1, 128, 2, 2, 256), (1, 384, 2, 1, 80)]
)
def test_kernel_equals_plain_attention(shape):
    q, k, v, segments, g = case(*shape)
    found = jax.jit(pull, static_argnums=0)("splash", q, k, v, segments, g)
    expected = jax.jit(pull, static_argnums=0)("xla", q, k, v, segments, g)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


def test_auto_is_plain_attention_off_a_tpu():
    q, k, v, segments, _ = case(1, 128, 2, 1, 64)
    found = packed_attend(q, k, v, segments)
    np.testing.assert_array_equal(found, packed_attend(q, k, v, segments, "xla"))


def test_an_unknown_form_is_named():
    q, k, v, segments, _ = case(1, 128, 2, 1, 64)
    with pytest.raises(ValueError, match="attention is 'flash', expected 'auto', 'splash'"):
        packed_attend(q, k, v, segments, "flash")


MESHED = """
import sys
sys.path.insert(0, {here!r})
import jax, numpy as np
from test_splash import case, pull
from mgm_jax.ops.attention import packed_attend
from mgm_jax.sharding import make_mesh
meshes = {{"fsdp": 2, "tensor": 4}}, {{"data": 2, "expert": 2, "tensor": 2}}
for mesh, kv in zip(meshes, (2, 1)):
    args = case(4, 128, 4, kv, 64)
    expected = jax.jit(pull, static_argnums=0)("xla", *args)
    with jax.set_mesh(make_mesh(mesh)):
        found = jax.jit(pull, static_argnums=0)("splash", *args)
        for wrong, q in (("3 rows", args[0][:3]), ("3 heads", args[0][:, :, :3])):
            try:
                packed_attend(q, *args[1:4], "splash")
                raise SystemExit("not refused")
            except ValueError as e:
                assert wrong in str(e), e
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
"""


def test_kernel_on_meshes(run_command):
    code = MESHED.format(here=str(Path(__file__).parent))
    done = run_command([sys.executable, "-c", code], devices=8)
    assert done.returncode == 0, done.stderr[-2000:]
