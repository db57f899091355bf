import pytest

from mgm_jax.demo import glyphs, photos


@pytest.fixture(scope="session")
def all_photos():
    return photos.load_photos()


@pytest.fixture(scope="session")
def parts():
    return glyphs.split_glyphs(0)
