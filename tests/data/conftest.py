"""A small data set with pictures."""

import io
import json

import numpy as np
import pytest
from PIL import Image


def picture(seed, size=(40, 30), kind="JPEG", mode="RGB"):
    """The bytes of a picture file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def llava_data():
    """(folder) -> writes `train.json` and `images/`: 10 records; 2 has no picture, 3 has two."""

    def write(folder):
        pictures = {
            f"coco/{i}.{kind}": picture(i, (60 + i, 30), pil)
            for i, (kind, pil) in enumerate([("jpg", "JPEG"), ("png", "PNG")] * 5)
        }
        images = [[name] for name in pictures]
        images[2], images[3] = [], images[3] + images[4]
        records = [
            {
                "id": f"r{i}",
                "image": names or None,
                "conversations": [
                    {"from": "human", "value": "<image>\n" * len(names) + "What is this?"},
                    {"from": "gpt", "value": "é " * (i + 1)},
                ],
            }
            for i, names in enumerate(images)
        ]
        (folder / "images" / "coco").mkdir(parents=True)
        for name, data in pictures.items():
            (folder / "images" / name).write_bytes(data)
        (folder / "train.json").write_text(json.dumps(records))
        return folder / "train.json", folder / "images"

    return write
