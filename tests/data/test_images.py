"""`data.images` against the original's outputs (tests/golden/preproc) and on bad files."""

import io
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgm_jax.data import images
from mgm_jax.data.images import ImageError, load_image, preprocess, to_hr, to_rgb
from mgm_jax.models.config import ImageSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "preproc"
PADDED = ["landscape", "landscape_gray", "portrait", "small_wide", "square", "square_palette"]
CROPPED = ["landscape", "portrait", "small_wide", "square"]


def channels_first(x):
    return np.moveaxis(x, -1, -3)


def run(name, spec):
    lr, hr = preprocess(load_image(GOLDEN / "images" / f"{name}.png"), spec)
    assert lr.dtype == hr.dtype == np.float32
    return channels_first(lr), channels_first(hr)


@pytest.mark.parametrize(
    "aspect, name", [("pad", n) for n in PADDED] + [("square", n) for n in CROPPED]
)
def test_128_pixels_equal_the_original(aspect, name):
    golden = np.load(GOLDEN / f"aux128_{aspect}_{name}.npz")
    lr, hr = run(name, ImageSpec(lr_size=56, hr_size=128, aspect=aspect))
    np.testing.assert_allclose(hr, golden["image_aux"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(lr, golden["image"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_global", [True, False])
@pytest.mark.parametrize("name", ["landscape", "portrait"])
def test_hd_equals_the_original(name, use_global):
    golden = np.load(GOLDEN / f"hd256_grid2_global_{name}.npz")
    lr, hr = run(name, ImageSpec(lr_size=56, hr_size=256, grid=2, use_global=use_global))
    np.testing.assert_allclose(hr, golden["image_aux"], rtol=0, atol=1e-5)
    # The recorded pictures without the global view are bit-equal to the first four with it.
    expected = golden["image"] if use_global else golden["image"][:4]
    np.testing.assert_allclose(lr, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CROPPED)
@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize(
    "case, spec",
    [
        ("336_768", dict(lr_size=336, hr_size=768)),
        ("672hd_1536", dict(lr_size=336, hr_size=1536, grid=2, use_global=True)),
    ],
)
def test_full_sizes_equal_the_original(case, spec, aspect, name):
    """Statistics and eight 4x4 patches of each picture at the released models' sizes."""
    golden = np.load(GOLDEN / f"real{case}_{aspect}_check.npz")
    outputs = run(name, ImageSpec(aspect=aspect, **spec))
    for key, found in zip(("image", "image_aux"), outputs, strict=True):
        expected = {k: golden[f"{name}|{key}|{k}"] for k in ("shape", "mean_c", "std_c")}
        assert found.shape == tuple(expected["shape"])
        found = found.reshape(-1, *found.shape[-3:])
        wide = found.astype(np.float64)
        np.testing.assert_allclose(wide.mean((2, 3)), expected["mean_c"], atol=1e-6)
        np.testing.assert_allclose(wide.std((2, 3), ddof=1), expected["std_c"], atol=1e-6)
        corners = golden[f"{name}|{key}|patch_yx"]
        patches = np.stack([found[:, :, y : y + 4, x : x + 4] for y, x in corners])
        values = golden[f"{name}|{key}|patch_values"]
        np.testing.assert_allclose(patches, values, rtol=0, atol=1e-5)


def noise(width, height):
    pixels = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def one_canvas(picture, size):
    """Pad mode as the original does it."""
    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BICUBIC))


sides = st.integers(1, 300)


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.integers(1, 200), st.sampled_from([1, 5000, 2**20]))
def test_padding_equals_one_canvas(width, height, size, band):
    picture = noise(width, height)
    with mock.patch.object(images, "BAND_PIXELS", band):
        found = to_hr(picture, ImageSpec(28, size))
    np.testing.assert_array_equal(found, one_canvas(picture, size))


@pytest.mark.parametrize("hr", [768, 1024, 1536])
@pytest.mark.parametrize(
    "size", [(1333, 750), (750, 1333), (1024, 683), (768, 500), (500, 768), (1999, 3), (640, 640)]
)
def test_padding_equals_one_canvas_at_the_sizes_of_models(size, hr):
    found = to_hr(noise(*size), ImageSpec(336, hr))
    np.testing.assert_array_equal(found, one_canvas(noise(*size), hr))


def test_a_strip_too_long_for_float32_is_filtered_whole():
    """70,001 / 256 rows an output: thirds of the result have no exact place in float32."""
    strip, side = noise(70_001, 3), 70_001
    canvas = Image.new("RGB", (256, side), (122, 116, 104))
    canvas.paste(strip.resize((256, 3), Image.Resampling.BICUBIC), (0, (side - 3) // 2))
    expected = np.asarray(canvas.resize((256, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(to_hr(strip, ImageSpec(28, 256)), expected)


def test_square_mode_truncates_the_long_side():
    """100 x 67 -> 95 x 64 (95.5 truncated), then 31 columns go, 15 of them on the left."""
    pixels = np.random.default_rng(0).integers(0, 256, (67, 100, 3), np.uint8)
    picture = Image.fromarray(pixels)
    expected = picture.resize((95, 64), Image.Resampling.BICUBIC).crop((15, 0, 79, 64))
    found = to_hr(picture, ImageSpec(28, 64, aspect="square"))
    np.testing.assert_array_equal(found, np.asarray(expected))


# Modes


def encode(picture, form="PNG", **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    file.seek(0)
    return file


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


@pytest.mark.parametrize(
    "picture, form",
    [
        (Image.fromarray(RAMP), "PNG"),
        (Image.fromarray(RAMP.astype(np.uint16) * 256 + 77), "PNG"),
        (Image.fromarray(RAMP.astype(np.uint16) * 256 + 77), "TIFF"),
        (Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(RAMP)]), "PNG"),
    ],
    ids=["gray", "gray16-png", "gray16-tiff", "gray-alpha"],
)
def test_gray_modes_give_the_same_picture(picture, form):
    found = np.asarray(load_image(encode(picture, form)))
    np.testing.assert_array_equal(found, np.repeat(RAMP[..., None], 3, axis=-1))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "WEBP", "AVIF", "TGA"])
def test_a_picture_outlives_its_file(tmp_path, form):
    noise(60, 40).save(tmp_path / "picture", form)
    found = load_image(tmp_path / "picture")
    (tmp_path / "picture").unlink()
    with_canvas = one_canvas(found.copy(), 64)
    np.testing.assert_array_equal(to_hr(found, ImageSpec(28, 64)), with_canvas)


def test_netpbm_16_bit_keeps_the_high_byte():
    levels = (RAMP.astype(np.uint16) * 256 + 77).astype(">u2")
    found = load_image(io.BytesIO(b"P5 16 16 65535\n" + levels.tobytes()))
    np.testing.assert_array_equal(np.asarray(found)[..., 0], RAMP)


def test_alpha_is_dropped_and_the_colour_stays():
    picture = Image.fromarray(COLOUR).convert("RGBA")
    picture.putalpha(0)
    np.testing.assert_array_equal(np.asarray(load_image(encode(picture))), COLOUR)


def test_palette_with_transparency_does_not_warn():
    picture = Image.fromarray(RAMP).convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_image(encode(picture, transparency=bytes(range(256))))
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found)[..., 0], RAMP)


def test_cmyk_jpeg_and_bilevel():
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    found = np.asarray(load_image(encode(red, "JPEG", quality=95)))
    np.testing.assert_allclose(found, np.broadcast_to([200, 30, 30], found.shape), atol=8)
    assert np.asarray(load_image(encode(Image.new("1", (4, 4), 1)))).min() == 255


def test_exif_orientation_is_left_as_is():
    picture = Image.fromarray(COLOUR[:8])
    exif = picture.getexif()
    exif[0x0112] = 6
    assert load_image(encode(picture, "JPEG", exif=exif)).size == (16, 8)


# Errors

WHERE = "train.json record 17 (id a)"


def file_with(content):
    def make(folder):
        (folder / "bad.png").write_bytes(content)
        return folder / "bad.png"

    return make


def folder_named(folder):
    (folder / "bad.png").mkdir()
    return folder / "bad.png"


PNG = (GOLDEN / "images" / "small_wide.png").read_bytes()


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda folder: folder / "bad.png", "the file is missing"),
        (folder_named, "this is a folder"),
        (file_with(b""), "empty, damaged header, or a format"),
        (file_with(b"<html>not found</html>"), "empty, damaged header, or a format"),
        (file_with(PNG[: len(PNG) // 2]), "corrupt or truncated"),
        (file_with(PNG[:5000] + b"\x00" * 400 + PNG[5400:]), "corrupt or truncated"),
        (file_with(b"P6 60000 60000 255\n"), "too many pixels"),
    ],
    ids=["missing", "folder", "empty", "html", "truncated", "corrupt", "bomb"],
)
def test_bad_files_name_record_and_file(tmp_path, make, reason):
    path = make(tmp_path)
    with pytest.raises(ImageError) as error:
        load_image(path, where=WHERE)
    assert str(error.value).startswith(f"{WHERE}: picture {path}: {reason}")


@pytest.mark.parametrize("pixels", [np.full((4, 4), 9, np.int32), np.ones((4, 4), np.float32)])
def test_samples_without_a_range_are_refused(pixels):
    with pytest.raises(ImageError, match="<BytesIO>: found samples of mode '[IF]', expected 8"):
        load_image(encode(Image.fromarray(pixels), "TIFF"))


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ImageError, match="found 0 x 5 pixels"):
        to_rgb(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_an_absurd_strip_is_refused(aspect):
    strip = Image.new("RGB", (1, 200_000))
    with pytest.raises(ImageError, match=f"^{WHERE[:10]}.*found 1 x 200000 pixels, too long"):
        to_hr(strip, ImageSpec(336, 768, aspect=aspect), where=WHERE)
