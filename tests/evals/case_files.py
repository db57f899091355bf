"""Files of small benchmarks: pictures, JSON, and where a case has them."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, RIGHT = 20, 13


@dataclass
class Case:
    questions: Path
    images: Path | None
    annotations: Path | None
    replies: list[str]
    summary: dict[str, float]
    options: dict = field(default_factory=dict)
    judge: object = None


def picture(number: int) -> bytes:
    """A PNG of 32 x 24 whose colours tell pictures apart."""
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:] = (number * 12 % 256, number * 37 % 256, 90)
    pixels[4:20, number : number + 8] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def draw(folder: Path, names) -> Path:
    """Pictures under these names; returns the folder."""
    for number, name in enumerate(dict.fromkeys(names)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def lines(path: Path, rows) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dump(path: Path, value) -> Path:
    """JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def right(i: int) -> bool:
    return i < RIGHT
