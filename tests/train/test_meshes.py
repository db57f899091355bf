"""Loss and gradients on one device and on eight, over every axis of the mesh (float32)."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY

SCRIPT = Path(__file__).with_name("one_step.py")
MESHES = [
    {},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 4, "expert": 2},
]
EXPERTS = {"count": 4, "per_token": 2, "router_loss": 0.01}
CASES = {
    "packed": {"step": True},
    "moe": {"model": {"llm": {"experts": EXPERTS}}, "config": {"moe": "gmm"}},
    "hd": {"model": {"image": {"hr_size": 64, "grid": 2, "use_global": True}}},
    "by rings": {"config": {"gradients": "ring"}, "meshes": [{"fsdp": 8}]},
    "weights kept": {
        "config": {"gradients": "ring", "remat": "dots+attention+weights"},
        "meshes": [{"fsdp": 8}],
    },
    "in parts": {"step": True, "gradients": False, "config": {"accumulate": 2}},
}


@pytest.fixture(scope="module")
def found(run_command, tmp_path_factory):
    out = tmp_path_factory.mktemp("meshes") / "found.npz"
    given = [json.dumps(v) for v in (TINY, list(CASES.values()), MESHES)]
    done = run_command([sys.executable, str(SCRIPT), str(out), *given], devices=8)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(out)


@pytest.mark.parametrize("mesh", range(1, len(MESHES)), ids=lambda m: str(MESHES[m]))
@pytest.mark.parametrize("case", ["packed", "moe", "hd"])
def test_as_on_one_device(found, case, mesh):
    same_gradients(found, f"{list(CASES).index(case)}/0/", f"{list(CASES).index(case)}/{mesh}/")


@pytest.mark.parametrize("case", ["by rings", "weights kept"])
def test_by_rings_as_on_one_device(found, case):
    one, eight = (f"{list(CASES).index(c)}/0/" for c in ("packed", case))
    same_gradients(found, one, eight)
    assert found[eight + "permutes"] and not found[one + "permutes"]


def same_gradients(found, one: str, eight: str):
    names = [n.removeprefix(one) for n in found.files if n.startswith(one + "grads")]
    assert len(names) > 20
    np.testing.assert_allclose(found[eight + "loss"], found[one + "loss"], rtol=1e-5)
    for name in names:
        expected = found[one + name]
        atol = 1e-5 * np.abs(expected).max() + 1e-8
        np.testing.assert_allclose(found[eight + name], expected, atol=atol, rtol=0, err_msg=name)
    assert found[eight + "constraints"] > 2


def test_parts_change_nothing(found):
    whole, parts = (list(CASES).index(case) for case in ("packed", "in parts"))
    for m in range(len(MESHES)):
        for name in ("loss", "grad_norm"):
            one, other = found[f"{whole}/{m}/{name}"], found[f"{parts}/{m}/{name}"]
            np.testing.assert_allclose(other, one, rtol=1e-5)
