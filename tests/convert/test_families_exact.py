"""All seven of the original's models in every dtype: there and back, and one changed element.

Through whole conversions, `mgm-jax convert`'s own functions, read back independently.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from golden_families import FAMILIES, complete, tensors_of
from safetensors.numpy import load_file, save_file

from mgm_jax.convert.checkpoints import from_hf, to_hf
from mgm_jax.convert.families import mgm
from mgm_jax.convert.hf import load_hf
from mgm_jax.convert.rules import export_params, import_params
from mgm_jax.tree import flatten
from tests.convert.conftest import same

ALL = ("llama_mha", *FAMILIES)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def written(directory):
    """All tensors of a Hugging Face directory, as the `safetensors` package reads them."""
    found = {}
    for file in directory.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_there_and_back_and_one_changed_element(name, dtype, tmp_path):
    source = complete(name, tmp_path)
    expected = {n: a.astype(DTYPES[dtype]) for n, a in tensors_of(name).items()}
    for file in source.glob("*.safetensors"):
        file.unlink()
    save_file(expected, source / "model.safetensors", {"format": "pt"})
    ours, back = tmp_path / "ours", tmp_path / "back"
    from_hf(source, ours, progress=False)
    to_hf(ours, back, progress=False)
    found = written(back)
    assert found.keys() == expected.keys()
    assert all(same(found[n], expected[n]) for n in expected)
    config = [json.loads((d / "config.json").read_text()) for d in (source, back)]
    assert config[0] == config[1]

    rng = np.random.default_rng(ALL.index(name))
    chunks = [f for f in (ours / "params").glob("*/*") if f.name != ".zarray"]
    chunk = chunks[rng.integers(len(chunks))]
    values = np.fromfile(chunk, np.uint8)
    size = np.dtype(DTYPES[dtype]).itemsize
    values[size * rng.integers(len(values) // size)] ^= 1  # the last bit of one number
    values.tofile(chunk)
    to_hf(ours, tmp_path / "changed", progress=False)
    changed = written(tmp_path / "changed")
    differ = [n for n in expected if not same(changed[n], expected[n])]
    assert len(differ) == 1, (chunk, differ)
    bits = {2: np.uint16, 4: np.uint32}[size]
    a, b = changed[differ[0]].view(bits), expected[differ[0]].view(bits)
    assert (a != b).sum() == 1


@pytest.mark.parametrize("name", ALL)
def test_each_array_holds_the_tensors_of_its_rule_and_no_other(name, tmp_path):
    """One element of each of our arrays, the first to the last: one element of one tensor."""
    cfg, params = load_hf(complete(name, tmp_path))
    tensors, flat = tensors_of(name), flatten(params)
    rules = {rule.ours: rule for rule in mgm.rules(cfg)}
    assert rules.keys() == flat.keys()
    rng, touched = np.random.default_rng(0), set()
    for ours, array in flat.items():
        for _ in range(3):
            at = tuple(int(rng.integers(n)) for n in array.shape)
            changed = array.copy()
            changed[at] += 1
            after = dict(export_params({ours: changed}, [rules[ours]]))
            places = {n: np.argwhere(a != tensors[n]) for n, a in after.items()}
            hit = {n: p for n, p in places.items() if len(p)}
            assert sum(map(len, hit.values())) == 1, (ours, at, hit)
            (theirs,) = hit
            touched.add(theirs)
            again = flatten(import_params(tensors | after, [rules[ours]], name))[ours]
            assert np.argwhere(again != array).tolist() == [list(at)]
    assert touched <= tensors.keys() and len(touched) >= len(flat)
