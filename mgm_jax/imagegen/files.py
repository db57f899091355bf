"""Painted pictures on disk: unique names, and the settings inside the PNG."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from mgm_jax.data.images import explain

CHUNK = "mgm_jax"  # keyword of the iTXt chunk; its text is a JSON object


def png_bytes(picture: Image.Image, settings: Mapping[str, Any]) -> bytes:
    """A PNG with `settings` (JSON values) inside, for `read_settings`."""
    info, data = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_itxt(CHUNK, json.dumps(dict(settings), ensure_ascii=False))
    picture.save(data, "PNG", pnginfo=info)
    return data.getvalue()


def save_picture(picture: Image.Image, folder, settings: Mapping[str, Any]) -> Path:
    """Writes a PNG under a name of time and prompt that no file has; returns its path.

    `settings` (JSON values; the prompt's key is "prompt") are inside, for `read_settings`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = png_bytes(picture, settings)
    words = re.findall(r"[a-z0-9]+", str(settings.get("prompt", "")).lower())[:6]
    stem = "-".join([time.strftime("%Y%m%d-%H%M%S"), *words])[:80]
    for n in itertools.count(1):
        path = folder / (f"{stem}.png" if n == 1 else f"{stem}-{n}.png")
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        try:
            with open(file, "wb") as stream:
                stream.write(data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path


def read_settings(path) -> dict[str, Any]:
    """The settings inside a PNG of `save_picture`; ValueError for any other file."""
    try:
        with Image.open(path) as picture:
            picture.load()  # text may stand behind the pixels
            text = getattr(picture, "text", {}).get(CHUNK)
    except Exception as error:  # decoders also raise SyntaxError, struct.error, EOFError, ...
        raise explain(error, str(path)) from error
    try:
        settings = json.loads(text)
    except (TypeError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: found no settings, expected a PNG that mgm-jax painted")
    return settings
