"""Every reader against files of torch, safetensors and numpy; and broken or hostile ones."""

import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mgm_jax.convert.readers import open_source
from tests.convert.conftest import same

RNG = np.random.default_rng(0)
ARRAYS = {
    "matrix": RNG.normal(size=(7, 5)).astype(np.float32),
    "half": RNG.normal(size=(3, 2, 4)).astype(np.float16),
    "brain": RNG.normal(size=(6, 3)).astype(ml_dtypes.bfloat16),
    "count": np.arange(4),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


def check(source, arrays):
    assert set(source) == set(arrays)
    for name, array in arrays.items():
        assert (source[name].shape, source[name].dtype) == (array.shape, array.dtype)
        assert same(source.read(name), array), name
        if array.ndim and len(array) > 2:
            assert same(source.read_rows(name, 1, 3), array[1:3]), name


def test_safetensors(tmp_path):
    save_file(ARRAYS, tmp_path / "any.name")
    check(open_source(tmp_path / "any.name"), ARRAYS)


def shards(directory, index=True):
    names = sorted(ARRAYS)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: ARRAYS[n] for n in part}, directory / file)
    where = {n: file for file, part in parts.items() for n in part}
    if index:
        text = json.dumps({"metadata": {}, "weight_map": where})
        (directory / "model.safetensors.index.json").write_text(text)
    return directory


@pytest.mark.parametrize("index", [True, False])
def test_shards(tmp_path, index):
    check(open_source(shards(tmp_path, index)), ARRAYS)


def test_absent_shard(tmp_path):
    (shards(tmp_path) / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"index.json names b.safetensors, which is absent"):
        open_source(tmp_path)


def test_tensor_not_where_the_index_says(tmp_path):
    shards(tmp_path)
    save_file({"other": ARRAYS["matrix"]}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="is not in b.safetensors, where it should be"):
        open_source(tmp_path)


def test_duplicate_tensor(tmp_path):
    for file in ("a.safetensors", "b.safetensors"):
        save_file({"x": ARRAYS["matrix"]}, tmp_path / file)
    with pytest.raises(ValueError, match=r"'x' is in both .*a.safetensors and .*b.safetensors"):
        open_source(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 60, 300, -1])
def test_truncated_safetensors(tmp_path, keep):
    file = tmp_path / "model.safetensors"
    save_file(ARRAYS, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors: .*(truncated|expected)"):
        open_source(tmp_path)


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content,words",
    [
        (raw(b"{nonsense"), "bad safetensors header"),
        (raw(b"[1, 2]"), "bad safetensors header"),
        (raw({"x": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "'x'"),
        (raw({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "expected 8"),
        (raw({"x": {"dtype": "F32", "shape": [1]}}), "'x'"),
        (raw(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":1}'), "duplicate tensor"),
        (raw({}, b"left over"), "expected"),
    ],
)
def test_bad_header(tmp_path, content, words):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="x.safetensors") as caught:
        open_source(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    fortran = np.asfortranarray(RNG.normal(size=(4, 3, 2)).astype(np.float32))
    save(tmp_path / "tower.npz", **{"img/a": fortran}, **ARRAYS)  # bfloat16 becomes |V2
    check(open_source(tmp_path), {"img/a": fortran} | ARRAYS)


def test_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}, None], object))
    with pytest.raises(ValueError, match="x.npz: refused: 'a' holds Python objects"):
        open_source(tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights, expected one of"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "x.safetensors").write_bytes(raw({}))
    with pytest.raises(ValueError, match="tensor 'y' is missing"):
        open_source(tmp_path).read("y")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch writes the files that are read here")


def to_torch(torch, array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def test_torch_file(torch, tmp_path):
    tensors = {n: to_torch(torch, a) for n, a in ARRAYS.items()}
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    tensors |= {
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:, ::2, 3],
        "expanded": base[0, 0, :1].expand(4, 3),
        "parameter": torch.nn.Parameter(base[2]),
    }
    expected = {n: np.array(t.detach()) for n, t in tensors.items() if n not in ARRAYS} | ARRAYS
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    check(open_source(tmp_path), expected)
    wrapped = {"epoch": 3, "state_dict": {"module." + n: t for n, t in tensors.items()}}
    torch.save(wrapped, tmp_path / "pytorch_model.bin")
    check(open_source(tmp_path / "pytorch_model.bin"), expected)
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "pytorch_model.bin")
    assert set(open_source(tmp_path)) == {"weight", "bias"}  # an OrderedDict with attributes


@pytest.mark.parametrize("part", [0.2, 0.7, 0.99])
def test_truncated_torch_file(torch, tmp_path, part):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(ValueError, match="pytorch_model.bin: truncated"):
        open_source(tmp_path)


def test_old_torch_file(torch, tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="pytorch_model.bin: PyTorch's old format"):
        open_source(tmp_path)


def archive(file, data):
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("archive/data.pkl", data)
        out.writestr("archive/byteorder", "little")
        out.writestr("archive/data/0", bytes(16))


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize(
    "call,args,name",
    [
        (eval, ("1 + 1",), "builtins.eval"),
        (exec, ("raise SystemExit",), "builtins.exec"),
        (__import__("os").system, ("true",), "posix.system"),
        (getattr, ("x", "upper"), "builtins.getattr"),
        (np.load, ("x",), "numpy.load"),
    ],
)
def test_malicious_pickle_is_refused_by_name(tmp_path, call, args, name):
    archive(tmp_path / "x.bin", pickle.dumps({"a": Evil(call, *args)}, protocol=2))
    with pytest.raises(ValueError, match=r"x.bin: refused") as caught:
        open_source(tmp_path)
    assert name.replace("builtins", "") in str(caught.value).replace("__builtin__", "")


def test_tensor_beyond_its_storage_is_refused(tmp_path):
    """Four floats in the storage, a hundred claimed: would read the neighbours' bytes."""
    data = (
        b"\x80\x02}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"K\x04tQK\x00K\x64\x85K\x01\x85\x89}tRs."
    )
    archive(tmp_path / "x.bin", data)
    with pytest.raises(ValueError, match="x.bin: tensor 'x' lies at bytes"):
        open_source(tmp_path)
    archive(tmp_path / "x.bin", data.replace(b"K\x64\x85", b"K\x04\x85"))
    assert open_source(tmp_path).read("x").shape == (4,)
