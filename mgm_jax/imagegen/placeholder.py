"""Back end `placeholder`: a card with the prompt on it, for tests and for trying without a model.

The same prompt and settings give the same picture on every machine with this Pillow; nothing is
downloaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DEFAULTS = {"negative_prompt": "", "width": 512, "height": 512, "steps": 1, "guidance": 1.0}


@dataclasses.dataclass(frozen=True)
class Placeholder:
    """Paints two colours that follow from the prompt and all settings, and the prompt on them."""

    name = "placeholder"
    supports = frozenset({*DEFAULTS, "seed", "init_image"})

    def generate(self, prompt, *, init_image=None, **values):
        """See `ImageBackend`; `init_image` shows through."""
        values = {k: DEFAULTS.get(k) if v is None else v for k, v in values.items()}
        size = values["width"], values["height"]
        digest = hashlib.sha256(json.dumps([prompt, values], sort_keys=True).encode()).digest()
        top, bottom = (np.frombuffer(digest[n : n + 3], np.uint8) // 2 for n in (0, 3))
        mix = np.linspace(0, 1, size[1])[:, None, None]  # [H, 1, 1]
        rows = (top * (1 - mix) + bottom * mix).astype(np.uint8)  # [H, 1, 3]
        picture = Image.fromarray(np.broadcast_to(rows, (size[1], size[0], 3)).copy())
        if init_image is not None:
            picture = Image.blend(picture, init_image.convert("RGB").resize(size), 0.5)
        font = ImageFont.load_default(size=max(8, size[0] // 20))
        lines = "\n".join([*textwrap.wrap(prompt, 32), f"(seed {values['seed']})"])
        ImageDraw.Draw(picture).multiline_text((size[0] // 16, size[1] // 16), lines, "white", font)
        return picture, values
