"""Pictures from prompts that the model writes: prompts, back ends, files, and a loop of critique.

No terminal, no web: the chat and the server are built on this package.
"""

from mgm_jax.imagegen.backends import BACKENDS, make_backend
from mgm_jax.imagegen.base import ImageBackend, ImageGenError, ImageSettings, generate_image
from mgm_jax.imagegen.files import png_bytes, read_settings, save_picture
from mgm_jax.imagegen.loop import Round, improve, log_path
from mgm_jax.imagegen.painter import Painted, Painter
from mgm_jax.imagegen.prompts import (
    GEN,
    NO_PROMPT,
    decided,
    find_prompt,
    visible,
    visible_pieces,
)

__all__ = [
    "BACKENDS",
    "GEN",
    "NO_PROMPT",
    "ImageBackend",
    "ImageGenError",
    "ImageSettings",
    "Painted",
    "Painter",
    "Round",
    "decided",
    "find_prompt",
    "generate_image",
    "improve",
    "log_path",
    "make_backend",
    "png_bytes",
    "read_settings",
    "save_picture",
    "visible",
    "visible_pieces",
]
