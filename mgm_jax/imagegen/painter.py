"""A back end with its settings and a folder: paints a prompt and keeps the picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mgm_jax.imagegen.base import ImageBackend, ImageSettings, generate_image
from mgm_jax.imagegen.files import save_picture


class Painted(NamedTuple):
    """A picture, where it lies, and everything that is needed to paint it again."""

    picture: Image.Image
    path: Path
    settings: dict[str, Any]


@dataclasses.dataclass
class Painter:
    """Paints into `folder`."""

    backend: ImageBackend
    folder: Path
    settings: ImageSettings = ImageSettings()

    def paint(self, prompt: str, init_image: Image.Image | None = None, **more) -> Painted:
        """Paints and saves; `more` goes into the PNG too. Raises what `generate_image` does."""
        picture, used = generate_image(self.backend, prompt, self.settings, init_image)
        used |= more
        return Painted(picture, save_picture(picture, self.folder, used), used)
