"""Whole conversions: there and back bit for bit, resumed, refused, onto a mesh."""

import json
import shutil
import sys
import textwrap

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mgm_jax.cli import main
from mgm_jax.convert import checkpoints
from mgm_jax.convert.plan import fingerprint
from mgm_jax.convert.readers import open_source
from mgm_jax.convert.rules import Rule, linear
from mgm_jax.convert.stream import contiguous, export_stream, import_stream
from mgm_jax.convert.writers import HfWriter, Spec, plan_shards
from tests.convert.conftest import GOLDEN, same

QUIET = {"progress": False}


def sharded(size):
    return lambda directory, specs: HfWriter(directory, specs, size)


def files(directory):
    return {f.name: f.read_bytes() for f in directory.iterdir() if f.name != ".convert.json"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_there_and_back(hf_directory, tmp_path, dtype):
    source = hf_directory(dtype)
    checkpoints.from_hf(source, tmp_path / "ours", **QUIET)
    checkpoints.to_hf(tmp_path / "ours", tmp_path / "back", shard_size=200_000, **QUIET)
    before, after = open_source(source), open_source(tmp_path / "back")
    assert set(before) == set(after) and len(after.files) > 2
    assert all(same(before.read(n), after.read(n)) for n in before)
    assert files(tmp_path / "back")["config.json"] == (GOLDEN / "config.json").read_bytes()
    loaded = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        loaded |= load_file(file)  # the official reader takes our files
    assert all(same(loaded[n], before.read(n)) for n in before)


def test_dtype_on_the_way(hf_directory, golden_tensors, tmp_path):
    checkpoints.from_hf(hf_directory("float32"), tmp_path / "ours", dtype="bfloat16", **QUIET)
    checkpoints.to_hf(tmp_path / "ours", tmp_path / "back", dtype="float16", **QUIET)
    back = open_source(tmp_path / "back")
    for name, array in golden_tensors.items():
        expected = array.astype(open_source(hf_directory("bfloat16"))[name].dtype)
        assert same(back.read(name), expected.astype(np.float16))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_value_beyond_float16(tmp_path):
    with pytest.raises(ValueError, match="'big' has values beyond float16"):
        contiguous(np.array([1e5], np.float32), np.dtype(np.float16), "big")


def test_plain_orbax_restores_onto_a_mesh(hf_directory, tmp_path, run_command):
    checkpoints.from_hf(hf_directory("bfloat16"), tmp_path / "ours", **QUIET)
    script = f"""
        import jax, numpy as np, mgm_jax
        from mgm_jax import sharding
        from mgm_jax.tree import flatten
        from mgm_jax.convert.readers import open_source
        mesh = sharding.make_mesh(dict(data=1, fsdp=4, expert=1, tensor=2))
        model = mgm_jax.load({str(tmp_path / "ours")!r}, mesh=mesh)
        source, params = open_source({str(tmp_path / "ours")!r}), flatten(model.params)
        assert len(mesh.devices.ravel()) == 8 and set(params) == set(source)
        assert any(not a.sharding.is_fully_replicated for a in params.values())
        for name, array in params.items():
            assert np.asarray(array).tobytes() == source.read(name).tobytes(), name
        assert model.tokenizer is None
        print("whole")
    """
    done = run_command([sys.executable, "-c", textwrap.dedent(script)], devices=8)
    assert done.stdout.endswith("whole\n"), done.stderr[-2000:]


def test_what_our_own_checkpointer_wrote_is_exported(hf_directory, tmp_path):
    """Trained checkpoints are packed and compressed, whole arrays in one chunk."""
    import mgm_jax

    source = hf_directory("float32")
    checkpoints.from_hf(source, tmp_path / "ours", **QUIET)
    mgm_jax.save(mgm_jax.load(tmp_path / "ours", dtype="float32"), tmp_path / "saved")
    assert (tmp_path / "saved" / "params" / "manifest.ocdbt").exists()
    checkpoints.to_hf(tmp_path / "saved", tmp_path / "back", **QUIET)
    before, after = open_source(source), open_source(tmp_path / "back")
    assert all(same(before.read(n), after.read(n)) for n in before)


def test_dry_run_prints_everything(hf_directory, tmp_path, capsys):
    source = hf_directory("float32")
    main(["convert", "from-hf", "--src", str(source), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == set(open_source(source))
    assert "model.mm_projector.0.bias [64] float32 -> projector/fc1/bias [64] float32" in lines
    ours = tmp_path / "ours"
    main(["convert", "from-hf", "--src", str(source), "--dst", str(ours)])
    main(["convert", "to-hf", "--src", str(ours), "--dst", str(tmp_path / "x"), "--dry-run"])
    printed = capsys.readouterr().out
    assert all(f"-> {name} " in printed for name in open_source(source))
    assert not (tmp_path / "x").exists()
    main(["convert", "inspect", str(ours)])
    assert "total: 119 tensors" in capsys.readouterr().out.splitlines()[-1]


def tampered(tensors, tmp_path, **changes):
    directory = tmp_path / "src"
    directory.mkdir()
    shutil.copy(GOLDEN / "config.json", directory)
    tower = tmp_path / "openai-clip-tiny"
    tower.mkdir()
    (tower / "config.json").write_text('{"num_attention_heads": 4}')
    changed = {n: a for n, a in (tensors | changes).items() if a is not None}
    save_file(changed, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    "name,array,words",
    [
        ("model.layers.1.mlp.up_proj.weight", None, "missing: model.layers.1.mlp.up_proj.weight"),
        ("model.surprise", np.zeros(3), "unknown: model.surprise (3,)"),
        ("model.layers.1.mlp.up_proj.weight", np.zeros((2, 64), np.float32), "is one array, but"),
        ("model.embed_tokens.weight", np.zeros((319, 64), np.float32), "expected (320, 64)"),
    ],
)
def test_what_does_not_fit_is_named(golden_tensors, tmp_path, name, array, words):
    source = tampered(golden_tensors, tmp_path, **{name: array})
    with pytest.raises(ValueError) as caught:
        checkpoints.from_hf(source, tmp_path / "ours", **QUIET)
    assert words in str(caught.value) and not (tmp_path / "ours").exists()


def test_ignorable_tensors_are_listed(golden_tensors, tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    source = tampered(golden_tensors, tmp_path, **{name: np.zeros(8, np.float32)})
    assert f"{name} -> left out" in checkpoints.from_hf(source, None, dry_run=True)


def test_towers(golden_tensors, tmp_path):
    """A folder that config.json names serves what is absent; --tower overrides."""
    clip = "model.vision_tower.vision_tower."
    inside = {n: a for n, a in golden_tensors.items() if n.startswith(clip)}
    source = tampered(golden_tensors, tmp_path, **dict.fromkeys(inside))
    with pytest.raises(FileNotFoundError, match="openai-clip-tiny: no weights"):
        checkpoints.from_hf(source, None, dry_run=True)
    extra = {"logit_scale": np.zeros((), np.float32), "text_model.x": np.zeros(2, np.float32)}
    own = {n.removeprefix(clip): a for n, a in inside.items()}
    save_file(own | extra, tmp_path / "openai-clip-tiny" / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "openai-clip-tiny" / "config.json", other)
    save_file({n: a + 1 for n, a in own.items()}, other / "model.safetensors")
    kept = golden_tensors["model.vision_tower.vision_tower.vision_model.post_layernorm.bias"]
    for towers, value in (({}, kept), ({"clip": other}, kept + 1)):
        ours = tmp_path / f"ours{len(towers)}"
        checkpoints.from_hf(source, ours, towers=towers, **QUIET)
        assert same(open_source(ours).read("clip/unused_norm/bias"), value)


def test_max_ram_names_the_largest_tensor(hf_directory, tmp_path):
    with pytest.raises(ValueError, match=r"max_ram is 0.00 GB, but tensor '.*' needs"):
        checkpoints.from_hf(hf_directory("float32"), tmp_path / "ours", max_ram=10**6)


def test_another_conversion_is_not_mixed_in(hf_directory, tmp_path):
    ours = tmp_path / "ours"
    checkpoints.from_hf(hf_directory("float32"), ours, **QUIET)
    before = (ours / "mgm.json").stat().st_mtime_ns
    checkpoints.from_hf(hf_directory("float32"), ours, **QUIET)  # finished: left as it is
    assert (ours / "mgm.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds a conversion of another source"):
        checkpoints.from_hf(hf_directory("float16"), ours, **QUIET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="thesis.txt"):
        checkpoints.to_hf(ours, tmp_path / "full", **QUIET)


def test_towers_share_a_shard():
    kind = np.dtype(np.uint8)
    names = ["model.vlm_uni_x.0", "a", "model.vision_tower.b", "c", "model.vision_tower_aux.d"]
    shards = plan_shards([Spec(n, (30,), kind) for n in names], 100)
    assert [[s.name for s in shard] for shard in shards] == [["a", "c"], names[::2]]


LAYERS = 10
RULES = [
    Rule("embed", "embed/embedding"),
    *linear("head", "head", bias=False),
    *linear("layer.{i}", "layers/fc", depth=LAYERS),
]


def synthetic(directory, rows, width):
    """Shards of random numbers, made one by one."""
    directory.mkdir()
    rng = np.random.default_rng(0)

    def numbers(*shape):
        return rng.integers(0, 2**14, shape, dtype=np.uint16).view(np.float16)

    for i in range(LAYERS):
        layer = {f"layer.{i}.weight": numbers(rows, width), f"layer.{i}.bias": numbers(rows)}
        save_file(layer, directory / f"{i}.safetensors")
    ends = {"embed": numbers(2 * rows, width), "head.weight": numbers(2 * rows, width)}
    save_file(ends, directory / "ends.safetensors")
    return directory


def test_finished_pieces_are_kept(tmp_path):
    """An interrupted export leaves whole shards, which the next run does not write again."""
    source = synthetic(tmp_path / "src", 500, 256)
    import_stream(open_source(source), RULES, tmp_path / "ours", **QUIET)
    params, back = tmp_path / "ours/params", tmp_path / "back"
    export_stream(params, RULES, back, writer=sharded(10**6), **QUIET)
    expected = files(back)
    journal = json.loads((back / ".convert.json").read_text())
    assert journal["fingerprint"] != fingerprint(open_source(source), "")
    (back / ".convert.json").write_text(json.dumps(journal | {"finished": False}))
    lost, kept = sorted(back.glob("*.safetensors"))[:2]
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    export_stream(params, RULES, back, writer=sharded(10**6), **QUIET)
    assert files(back) == expected and kept.stat().st_mtime_ns == stamp
