"""What paints: the contract of a back end, its settings, and the one way to call it."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any, Protocol

from PIL import Image

MAX_SIDE = 4096  # pixels


class ImageGenError(ValueError):
    """A picture that could not be made; the message says by which back end and why."""


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How a picture is painted; None is the back end's own default. ValueError names a bad value.

    negative_prompt: what it must not show.
    seed: 0 to 2**32 - 1; None draws one, so that every picture can be made again.
    width, height: in pixels.
    steps: of the sampler.
    guidance: how closely the prompt is followed (classifier-free guidance scale).
    """

    negative_prompt: str | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self):
        def check(name, kinds, low, high, expected):
            value = getattr(self, name)
            fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
            if value is not None and not fits:
                raise ValueError(f"{name} is {value!r}, expected {expected}")

        if not isinstance(self.negative_prompt, str | None):
            raise ValueError(f"negative_prompt is {self.negative_prompt!r}, expected a text")
        check("seed", int, 0, 2**32 - 1, f"an integer, 0 to {2**32 - 1}")
        for side in ("width", "height"):
            check(side, int, 1, MAX_SIDE, f"an integer, 1 to {MAX_SIDE}")
        check("steps", int, 1, 1000, "an integer, 1 to 1000")
        check("guidance", int | float, 0, 100, "a number, 0 to 100")


class ImageBackend(Protocol):
    """Something that paints. `supports`: the arguments of `generate` that it can follow besides the
    prompt; `generate_image` refuses others, so `generate` gets None for them.
    """

    name: str
    supports: frozenset[str]

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str | None,
        seed: int | None,
        width: int | None,
        height: int | None,
        steps: int | None,
        guidance: float | None,
        init_image: Image.Image | None = None,
    ) -> tuple[Image.Image, dict[str, Any]]:
        """A prompt -> (picture, the settings that it was made with, defaults filled in).

        `init_image` is a picture to start from. Raises ImageGenError.
        """
        ...


def generate_image(
    backend: ImageBackend,
    prompt: str,
    settings: ImageSettings | None = None,
    init_image: Image.Image | None = None,
) -> tuple[Image.Image, dict[str, Any]]:
    """Paints a prompt -> (picture, everything that is needed to paint it again).

    ValueError for a blank prompt or a setting that the back end can't follow; ImageGenError if it
    fails.
    """
    values = dataclasses.asdict(settings or ImageSettings())
    prompt = prompt.strip()
    if not prompt:
        raise ValueError("the prompt for a picture is empty")
    asked = {name for name, value in values.items() if value is not None}
    asked |= {"init_image"} if init_image is not None else set()
    if refused := sorted(asked - backend.supports):
        raise ValueError(
            f"image back end {backend.name!r} can't follow {', '.join(refused)}; it follows "
            f"{', '.join(sorted(backend.supports))}"
        )
    if values["seed"] is None and "seed" in backend.supports:
        values["seed"] = secrets.randbits(32)
    picture, used = backend.generate(prompt, **values, init_image=init_image)
    return picture, {"backend": backend.name, "prompt": prompt} | used
