"""Photographs and digits: what is loaded, and that the splits share nothing."""

import gzip

import numpy as np
import pytest

from mgm_jax.demo import glyphs, photos


def test_photographs_are_rgb_and_bounded(all_photos):
    assert set(all_photos) == set(photos.PHOTOS)
    for name, photo in all_photos.items():
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3, name
        assert 150 <= min(photo.shape[:2]) and max(photo.shape[:2]) <= photos.MAX_SIDE, name
        assert photo.std() > 5, name


def test_new_photographs_are_apart():
    assert len(photos.NEW_PHOTOS) >= 4
    assert not set(photos.NEW_PHOTOS) & set(photos.TRAIN_PHOTOS)
    files = [(photo.package, photo.path) for photo in photos.PHOTOS.values()]
    assert len(set(files)) == len(files)


def test_unknown_photograph_and_missing_package():
    with pytest.raises(ValueError, match="unknown photograph 'sofa'"):
        photos.load_photo("sofa")
    with pytest.raises(FileNotFoundError, match="'no_such_package'.*not installed"):
        photos.package_file("no_such_package", "a.png")
    with pytest.raises(FileNotFoundError, match="data/no_such.png of package 'skimage'"):
        photos.package_file("skimage", "data/no_such.png")


def test_glyph_splits_are_disjoint_stratified_and_complete(parts):
    assert {name: len(part) for name, part in parts.items()} == glyphs.SPLITS
    ids = np.concatenate([part.ids for part in parts.values()])
    assert len(np.unique(ids)) == sum(glyphs.SPLITS.values())
    for name, part in parts.items():
        assert set(np.bincount(part.labels)) == {glyphs.SPLITS[name] // 10}
    pictures = [{image.tobytes() for image in part.images} for part in parts.values()]
    assert not pictures[0] & pictures[1] and not pictures[0] & pictures[2]


def test_glyph_split_follows_the_seed(parts):
    again, other = glyphs.split_glyphs(0), glyphs.split_glyphs(1)
    assert np.array_equal(again["test"].ids, parts["test"].ids)
    assert not np.array_equal(other["test"].ids, parts["test"].ids)


BAD = {"no gzip": b"not gzip", "two rows": gzip.compress(b"1,2,3\n4,5,6\n")}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_damaged_digits(tmp_path, monkeypatch, content):
    file = tmp_path / "mnist.csv.gz"
    file.write_bytes(content)
    monkeypatch.setattr(glyphs, "package_file", lambda package, path: file)
    with pytest.raises(ValueError, match="mnist.csv.gz"):
        glyphs.load_mnist()
