"""Pictures that a user names: files, globs and, where allowed, URLs."""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
import shlex
from collections.abc import Iterable

from PIL import Image

from mgm_jax import ocr
from mgm_jax.data.images import load_image
from mgm_jax.data.records import Encoded
from mgm_jax.fetch import fetch


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A picture of a conversation and what the user calls it."""

    name: str
    picture: Image.Image

    @functools.cached_property
    def texts(self) -> list[str]:
        """What OCR reads in it, once; see `ocr.read_text`."""
        return ocr.read_text(self.picture)


def split_names(text: str) -> list[str]:
    """The names in a typed line, as a shell splits them; a line that is a file is one name."""
    if os.path.exists(os.path.expanduser(text)):
        return [text]
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None


def load_pictures(names: Iterable[str], allow_urls: bool = False) -> list[Shown]:
    """Files, globs and URLs -> pictures, in order; globs sorted.

    URLs go through `fetch` (http and https, public addresses, limits) if `allow_urls`. ValueError
    or OSError names what is missing, unreadable or not allowed.
    """
    shown = []
    for name in names:
        if name.startswith(("http://", "https://")):
            if not allow_urls:
                raise ValueError(f"{name}: URLs are off; start the chat with --allow-urls")
            shown.append(Shown(name, load_image(Encoded(name, fetch(name)))))
            continue
        path = os.path.expanduser(name)
        files = [path]
        if glob.has_magic(path) and not os.path.exists(path):
            files = sorted(glob.glob(path))
            if not files:
                raise FileNotFoundError(f"{name}: no file matches")
        shown += [Shown(file, load_image(file)) for file in files]
    return shown
