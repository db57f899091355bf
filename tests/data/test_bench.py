"""`mgm-jax data bench`: its photos, the DataLoader that it compares with, and its result."""

import argparse
import importlib.util
import json
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from mgm_jax.data import bench, bench_photos, cli
from mgm_jax.data.bench_packing import CASES, Case, fills
from mgm_jax.data.bench_photos import make_photos
from mgm_jax.data.bench_pictures import OriginalPictures
from mgm_jax.data.images import load_image, preprocess
from mgm_jax.models.config import ImageSpec

TORCH = importlib.util.find_spec("torch") is not None
KEYS = {
    "token_fill",
    "slot_fill",
    "images_per_s_per_core",
    "plan_seconds",
    "plan_peak_gb",
    "torch_images_per_s_per_core",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return make_photos(folder, 24, workers=2)


def run(*arguments):
    cli.main(["bench", *map(str, arguments)])


def test_photos_are_megapixel_jpegs_no_two_alike(photos):
    sizes, contents = set(), set()
    for file in photos:
        with file.open() as stream, Image.open(stream) as picture:
            assert picture.format == "JPEG" and picture.mode == "RGB"
            assert 0.98e6 < picture.width * picture.height < 1.02e6
            sizes.add(picture.size)
            contents.add(picture.tobytes())
    assert len(contents) == len(photos) and len(sizes) > 3


def test_photos_are_kept_and_what_is_damaged_is_made_again(photos, tmp_path):
    with mock.patch.object(bench_photos, "photo", wraps=bench_photos.photo) as made:
        first = [file.open().read() for file in make_photos(tmp_path, 4, workers=0)]
        assert made.call_count == 4
        (tmp_path / "00002.jpg").write_bytes(b"not a picture")
        again = [file.open().read() for file in make_photos(tmp_path, 4, workers=0)]
        assert made.call_count == 5
        make_photos(tmp_path, 1, seed=1, workers=0)
        assert made.call_count == 6
    assert first == again == [file.open().read() for file in photos[:4]]


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
def test_the_dataloader_makes_the_same_pictures(photos):
    spec = ImageSpec(56, 128)
    data = OriginalPictures(tuple(file.name for file in photos), spec, lr=True)
    for i in range(6):
        found = [np.moveaxis(view.numpy(), 0, -1) for view in data[i]]
        for view, expected in zip(found, preprocess(load_image(photos[i]), spec), strict=True):
            np.testing.assert_allclose(view, expected, rtol=0, atol=1e-5)


def test_fills_are_shares_and_ours_is_near_best_fit():
    for case in CASES.values():
        found = fills(case, 5000)
        for key in ("token_fill", "slot_fill", "best_fit", "padded"):
            assert 0 < found[key] <= 1
        assert found["token_fill"] > found["best_fit"] - 0.01


@pytest.mark.parametrize(
    "torch",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(not TORCH, reason="torch is not installed")),
    ],
)
def test_the_command(tmp_path, capsys, photos, torch):
    folder = photos[0].name.rsplit("/", 1)[0]
    options = [] if torch else ["--no-torch"]
    sizes = ["--pictures", 24, "--examples", 2000, "--hr-size", 64, "--workers", 1]
    run(*sizes, "--workdir", folder, "--json", tmp_path / "bench.json", *options)
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert (tmp_path / "bench.json").read_text().splitlines() == [lines[-1]]
    assert KEYS <= result.keys()
    assert result["images_per_s_per_core"] > 0 and result["plan_seconds"] > 0
    assert result["token_fill"] == result["cases"][bench.HEADLINE]["token_fill"]
    if torch:
        assert result["torch_images_per_s_per_core"] > 0 and result["images_ratio"] > 0
    else:
        assert result["torch_images_per_s_per_core"] is None
        assert "--no-torch was given: no DataLoader to compare with" in lines


def test_a_missing_torch_is_said(capsys, tmp_path):
    args = argparse.Namespace(
        no_torch=False, workdir=str(tmp_path), pictures=1, workers=1, hr_size=8
    )
    with (
        mock.patch.object(bench.importlib.util, "find_spec", return_value=None),
        mock.patch.object(bench, "make_photos", return_value=[1]),
        mock.patch.object(bench, "compare", return_value={"images_ratio": None}) as compare,
    ):
        bench.bench_pictures(args)
    assert compare.call_args.kwargs["torch"] is False
    assert "torch is not installed" in capsys.readouterr().out


def test_rows_too_short_for_a_picture_are_refused():
    with pytest.raises(ValueError, match="rows of 592 tokens, expected at least 593"):
        Case(0.95, 576, 592).index(10)
    assert Case(0.95, 576, 593).index(10)[0].max() <= 593


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_bad_numbers_are_refused(value, capsys):
    with pytest.raises(SystemExit):
        run("--pictures", value)
    assert f"found '{value}', expected a whole number above 0" in capsys.readouterr().err
