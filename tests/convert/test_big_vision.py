"""big_vision's .npz in every layout, both ways; a SigLIP folder of Hugging Face."""

import contextlib
import copy
import dataclasses
import json

import big_vision_case as case
import jax
import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage
from big_vision_case import assert_same, read, write
from safetensors.numpy import save_file

from mgm_jax import cli, sharding
from mgm_jax.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mgm_jax.convert.big_vision import read_tower
from mgm_jax.convert.big_vision_source import open_tower, resize_positions, split_subtree
from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.config import MgmConfig, read_parts
from mgm_jax.program import abstract_model
from mgm_jax.run import init_params
from mgm_jax.tree import flatten
from tests.conftest import TINY
from tests.convert.conftest import same

RNG = np.random.default_rng(0)
PICTURES = RNG.normal(size=(2, 20, 20, 3)).astype(np.float32)
TOWER = {"embedding", "pos_embedding", "Transformer", "cls"}


def convert(direction, src, dst, *options):
    cli.main(["convert", direction, "--src", str(src), "--dst", str(dst), *map(str, options)])


def tower_of(tensors):
    return {n: a for n, a in tensors.items() if n.split("/")[0] in TOWER}


def features(directory):
    checkpoint = load_checkpoint(directory)
    cfg = checkpoint.config["clip"]
    return jax.jit(ClipVit(cfg).apply)({"params": checkpoint.params["clip"]}, PICTURES), cfg


# ------------------------------------------------------------------------------------ both ways


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("select", [-1, -2])
def test_there_and_back(tmp_path, scan, dtype, select):
    loop = case.arrays(head=True, dtype=dtype)
    src = write(tmp_path / "a.npz", case.stacked(loop) if scan else loop)
    convert("from-bv", src, tmp_path / "ours", "--select-layer", select)
    for layout, expected in (("loop", loop), ("scan", case.stacked(loop))):
        out = tmp_path / f"{layout}.any"
        convert("to-bv", tmp_path / "ours", out, "--layout", layout)
        assert_same(read(out), tower_of(expected))
        with np.load(out, allow_pickle=False) as archive:  # as big_vision reads it
            assert set(archive.files) == set(tower_of(expected))
            for name, array in tower_of(expected).items():
                assert same(archive[name].view(array.dtype), array), name


def test_numbers_and_description(tmp_path):
    loop = case.arrays(head=True)
    convert("from-bv", write(tmp_path / "a.npz", loop), tmp_path / "ours")
    found, cfg = features(tmp_path / "ours")
    np.testing.assert_allclose(found, case.forward(loop, PICTURES), atol=1e-5, rtol=1e-5)
    assert (cfg.kind, cfg.image_size, cfg.heads, cfg.layers) == ("siglip", 20, case.N, case.LAYERS)
    description = json.loads((tmp_path / "ours" / "mgm.json").read_text())
    assert list(description["model"]) == ["clip"]
    assert description["provenance"]["image"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert len(description["provenance"]["sha256"]) == 1
    convert("from-bv", tmp_path / "a.npz", tmp_path / "half", "--dtype", "bfloat16")
    params = flatten(load_checkpoint(tmp_path / "half").params)
    assert {a.dtype for a in params.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_one_changed_element_changes_one_array(tmp_path):
    loop = case.arrays()
    convert("from-bv", write(tmp_path / "a.npz", loop), tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a")
    before, cfg = flatten(checkpoint.params), checkpoint.config["clip"]
    for i, name in enumerate(loop):
        changed = loop | {name: loop[name].copy()}
        changed[name].flat[-1] += 1
        tower = open_tower(write(tmp_path / f"{i}.npz", changed))
        after = flatten(read_tower(tower, cfg))
        different = [n for n in before if not same(np.asarray(before[n]), after[n])]
        assert len(different) == 1, (name, different)
        assert np.sum(np.asarray(before[different[0]]) != after[different[0]]) == 1


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/", "img/", "params/img/"])
def test_prefixes(tmp_path, prefix, capsys):
    loop = case.arrays(head=True)
    others = {"t": np.ones(1, np.float32), "txt/Embed_0/embedding": np.ones((5, 4), np.float32)}
    others["opt/state/0"] = np.ones(3, np.float32)
    tensors = {prefix + n: a for n, a in loop.items()} | (others if prefix else {})
    src = write(tmp_path / "a.npz", tensors)
    convert("from-bv", src, tmp_path / "ours")
    convert("to-bv", tmp_path / "ours", tmp_path / "b.npz")
    assert_same(read(tmp_path / "b.npz"), tower_of(loop))
    capsys.readouterr()
    convert("from-bv", src, tmp_path / "ours", "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    left = {line.split()[0] for line in lines if line.endswith("-> left out")}
    heads = {prefix + n for n in loop if n.startswith(("MAPHead_0/", "head/"))}
    assert left == heads | (set(others) if prefix else set())
    assert any(
        line.startswith(f"{prefix}embedding/kernel [4, 4, 3, 24] float32 -> clip/patch")
        for line in lines
    )
    assert lines[-1] == f"{len(tower_of(loop))} tensors ({len(left)} left out)"


def test_scanned_arrays_are_mapped_by_layer(tmp_path, capsys):
    src = write(tmp_path / "a.npz", case.stacked(case.arrays()), "img/")
    convert("from-bv", src, tmp_path / "ours", "--dry-run", "--select-layer", -2)
    lines = capsys.readouterr().out.splitlines()
    name = "img/Transformer/encoderblock/LayerNorm_0/scale"
    assert f"{name}[1] [24] float32 -> clip/layers/norm1/scale[1] [24] float32" in lines
    assert f"{name}[2] [24] float32 -> clip/unused_layers/norm1/scale[0] [24] float32" in lines
    assert not (tmp_path / "ours").exists()


def test_a_subtree(tmp_path):
    one, two = case.arrays(seed=1), case.arrays(seed=2)
    tensors = {f"img/{n}": a for n, a in one.items()} | {f"aux/{n}": a for n, a in two.items()}
    src = write(tmp_path / "a.npz", tensors)
    for subtree, expected in (("img", one), ("aux", two)):
        convert("from-bv", f"{src}:{subtree}", tmp_path / subtree)
        convert("to-bv", tmp_path / subtree, tmp_path / f"{subtree}.npz")
        assert_same(read(tmp_path / f"{subtree}.npz"), expected)
    odd = tmp_path / "b.npz:img"
    odd.write_bytes(src.read_bytes())
    assert split_subtree(odd) == (str(odd), None)
    assert split_subtree("gs/x.npz:img/head") == ("gs/x.npz", "img/head")


OLD = {
    "very old positions": lambda t: {
        n.replace("pos_embedding", "Transformer/posembed_input/pos_embedding"): a
        for n, a in t.items()
    },
    "old positions": lambda t: {
        n.replace("pos_embedding", "Transformer/pos_embedding"): a for n, a in t.items()
    },
    "before Linen": case.before_linen,
    "before Linen, scanned": lambda t: case.before_linen(case.stacked(t)),
    "inlined head": lambda t: {n.removeprefix("MAPHead_0/"): a for n, a in t.items()},
    "NaFlex": lambda t: (
        t
        | {
            "embedding/kernel": t["embedding/kernel"].reshape(-1, case.D),
            "pos_embedding": t["pos_embedding"].reshape(case.SIDE, case.SIDE, case.D),
        }
    ),
    "Fortran order": lambda t: {n: np.asfortranarray(a) for n, a in case.stacked(t).items()},
}


@pytest.mark.parametrize("layout", OLD)
def test_old_layouts(tmp_path, layout):
    loop = case.arrays(head=True)
    old = OLD[layout](loop)
    if layout != "Fortran order":
        assert set(old) != set(loop) or layout == "NaFlex"
    convert("from-bv", write(tmp_path / "a.npz", old), tmp_path / "ours")
    convert("to-bv", tmp_path / "ours", tmp_path / "b.npz")
    assert_same(read(tmp_path / "b.npz"), tower_of(loop))


@pytest.mark.parametrize("token", [True, False])
def test_positions_with_a_class_token(tmp_path, token):
    loop = case.arrays(cls=token)
    first = RNG.normal(size=(1, 1, case.D)).astype(np.float32)
    positions = np.concatenate([first, loop["pos_embedding"]], 1)
    src = write(tmp_path / "a.npz", loop | {"pos_embedding": positions})
    convert("from-bv", src, tmp_path / "ours")
    found, cfg = features(tmp_path / "ours")
    expected = loop | ({"cls": loop["cls"] + first} if token else {})
    assert cfg.kind == ("vit" if token else "siglip")
    np.testing.assert_allclose(found, case.forward(expected, PICTURES), atol=1e-5, rtol=1e-5)
    convert("to-bv", tmp_path / "ours", tmp_path / "b.npz")
    assert_same(read(tmp_path / "b.npz"), expected)


@pytest.mark.parametrize("m,n", [(5, 7), (5, 3), (16, 24), (3, 3), (1, 4), (4, 1), (24, 27)])
def test_resized_as_scipy_does(m, n):
    grid = RNG.normal(size=(m, m, 6)).astype(np.float32)
    expected = scipy.ndimage.zoom(grid, (n / m, n / m, 1), order=1)
    np.testing.assert_allclose(resize_positions(grid, n), expected, atol=1e-6)


def test_another_image_size(tmp_path):
    loop = case.arrays()
    src = write(tmp_path / "a.npz", loop)
    convert("from-bv", src, tmp_path / "ours", "--image-size", 30)
    checkpoint = load_checkpoint(tmp_path / "ours")
    assert (checkpoint.config["clip"].image_size, checkpoint.config["clip"].grid) == (30, 7)
    grid = loop["pos_embedding"].reshape(5, 5, case.D)
    expected = scipy.ndimage.zoom(grid, (7 / 5, 7 / 5, 1), order=1).reshape(49, case.D)
    np.testing.assert_allclose(checkpoint.params["clip"]["positions"], expected, atol=1e-6)
    convert("from-bv", src, tmp_path / "same", "--image-size", 23)  # the same grid: bit for bit
    found = load_checkpoint(tmp_path / "same")
    assert found.config["clip"].image_size == 23
    assert same(np.asarray(found.params["clip"]["positions"]), loop["pos_embedding"][0])


def test_a_run_begins_from_it(tmp_path, capsys):
    """A model whose config has the part's `clip` takes its tower from the part."""
    loop = case.arrays(cls=True)
    convert("from-bv", write(tmp_path / "a.npz", loop), tmp_path / "part")
    part = load_checkpoint(tmp_path / "part")
    values = copy.deepcopy(TINY) | {"clip": dataclasses.asdict(part.config["clip"])}
    half = dict(mean=[0.5] * 3, std=[0.5] * 3, hr_mean=[0.5] * 3, hr_std=[0.5] * 3)
    values["image"] = dict(lr_size=20, hr_size=40, **half)
    values["convnext"] |= dict(patch_size=2)
    cfg = MgmConfig.from_dict(values)
    model, batch, shapes, axes = abstract_model(cfg)
    shardings = sharding.param_shardings(shapes, axes, sharding.make_mesh({"fsdp": 1}))
    shapes = jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, shardings
    )
    rules = [("clip/.*", str(tmp_path / "part")), (".*", None)]
    params = init_params(model, batch, shapes, rules, 0)
    found = {n: np.asarray(a) for n, a in flatten(params["clip"]).items()}
    assert_same(found, {n: np.asarray(a) for n, a in flatten(part.params["clip"]).items()})

    save_checkpoint(tmp_path / "whole", Checkpoint(cfg, params, None, "v1"))
    convert("to-bv", tmp_path / "whole", tmp_path / "b.npz")
    assert_same(read(tmp_path / "b.npz"), loop)
    fails("has no vision tower but CLIP", "to-hf", tmp_path / "whole", tmp_path / "hf")
    with contextlib.suppress(SystemExit):
        cli.main(["doctor", str(tmp_path / "part")])
    out = capsys.readouterr().out
    assert "holds only clip" in out and "lacks" not in out


def test_equal_towers_give_equal_bytes(tmp_path):
    convert("from-bv", write(tmp_path / "a.npz", case.arrays()), tmp_path / "ours")
    for name in ("b", "c"):
        convert("to-bv", tmp_path / "ours", tmp_path / name, "--layout", "scan")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    convert("from-bv", tmp_path / "a.npz", tmp_path / "ours")  # finished: left as it is


# ------------------------------------------------------------------------------------ bad input


def fails(match, *arguments):
    with pytest.raises(SystemExit) as caught:
        convert(*arguments)
    text = str(caught.value.code)
    assert match in text, text
    return text


def test_bad_files(tmp_path):
    loop, dst = case.arrays(), tmp_path / "ours"

    def bad(change, match, *options, suffix=""):
        src = write(tmp_path / "bad.npz", change)
        return fails(match, "from-bv", f"{src}{suffix}", dst, *options)

    def without(name):
        return {n: a for n, a in loop.items() if n != name}

    query = f"Transformer/encoderblock_1/{case.ATTENTION}/query/kernel"
    bad(without(query), f"- missing: {query}")
    bad(loop | {"Transformer/encoderblock_1/extra": loop["embedding/bias"]}, "+ unknown")
    bad(without("embedding/kernel"), "no ViT of big_vision")
    bad({f"img/{n}": a for n, a in loop.items()}, "no ViT of big_vision under 'txt'", suffix=":txt")
    bad(without("pos_embedding"), "sincos2d")
    bad(
        loop | {"pos_embedding": loop["pos_embedding"][:, :7]}, "pos_embedding has shape (1, 7, 24)"
    )
    bad(loop | {"embedding/kernel": loop["embedding/bias"]}, "embedding/kernel has shape (24,)")
    bad(loop | {query: loop[query][:, :2]}, "is one array, but")
    bad(loop | {"embedding/bias": np.ones(7)}, "'embedding/bias' has shape (7,)")
    scale = "Transformer/encoder_norm/scale"
    bad(
        loop | {scale: np.ones(7)}, f"{scale!r} has shape (7,) (shape (7,) where (24,) is expected)"
    )
    bad(loop | case.stacked(loop), "are the same array")
    bad(loop | {"pos_embedding": np.array([{}], dtype=object)}, "Python objects")
    bad(loop | {f"img/{n}": a for n, a in loop.items()}, "holds several ViTs, choose one")
    bad(loop, "less than one patch", "--image-size", 3)
    bad(loop, "max_ram", "--max-ram", "1MB")
    assert not dst.exists()
    fails("is missing", "from-bv", tmp_path / "absent.npz:img", dst)


def test_bad_exports(tmp_path):
    parts, zeros = read_parts({"clip": TINY["clip"]}), {"clip": {"cls": np.zeros(16)}}
    save_checkpoint(tmp_path / "clip", Checkpoint(parts, zeros, None, None))
    text = fails("its vision tower is CLIP's", "to-bv", tmp_path / "clip", tmp_path / "x")
    assert "quick_gelu" in text and "norm before the layers" in text
    src = write(tmp_path / "a.npz", case.arrays())
    fails("exists", "to-bv", tmp_path, src)
    convert("from-bv", src, tmp_path / "ours")
    fails("has no vision tower but CLIP", "to-hf", tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "x").exists() and not (tmp_path / "hf").exists()


# ------------------------------------------------------------------------- Hugging Face's SigLIP


def test_a_siglip_folder_of_hugging_face(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the independent reference")
    transformers = pytest.importorskip("transformers", reason="the independent reference")
    sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=3, image_size=20, patch_size=4)
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes)).eval()
    tensors = {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}
    names = {n: "vision_model." + n.removeprefix("vision_model.") for n in tensors}
    tensors = {names[n]: a for n, a in tensors.items()}
    tensors |= {"logit_scale": np.ones(1, np.float32), "text_model.head.bias": np.ones(3)}
    src = tmp_path / "any"
    src.mkdir()
    save_file(tensors, src / "model.safetensors")
    fails("a SigLIP tower needs its config.json", "from-hf", src, tmp_path / "ours")
    (src / "config.json").write_text(json.dumps({"vision_config": sizes}))
    convert("from-hf", src, tmp_path / "ours")
    found, cfg = features(tmp_path / "ours")
    assert (cfg.kind, cfg.act, cfg.norm_eps, cfg.heads) == ("siglip", "gelu_tanh", 1e-6, 3)
    with torch.no_grad():
        expected = model(torch.from_numpy(np.moveaxis(PICTURES, -1, 1).copy())).last_hidden_state
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    convert("to-bv", tmp_path / "ours", tmp_path / "a.npz")
    convert("from-bv", tmp_path / "a.npz", tmp_path / "again")
    np.testing.assert_array_equal(features(tmp_path / "again")[0], found)
