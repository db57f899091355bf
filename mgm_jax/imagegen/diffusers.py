"""Back end `diffusers`: Stable Diffusion XL in PyTorch (extra `gen`; MGM_SPEC 7.4).

A TPU belongs to one process; this runs on a GPU or the CPU beside it.
"""

from __future__ import annotations

import dataclasses
import functools

from mgm_jax.imagegen.base import ImageGenError
from mgm_jax.imagegen.prompts import NEGATIVE_PROMPT

# Those of the original: its negative prompt and, for the rest, diffusers' own for this pipeline.
DEFAULTS = {
    "negative_prompt": NEGATIVE_PROMPT,
    "width": 1024,
    "height": 1024,
    "steps": 50,
    "guidance": 5.0,
}


@dataclasses.dataclass(frozen=True)
class Diffusers:
    """SDXL from a Hugging Face name or a folder, loaded when the first picture is asked for.

    model: what `from_pretrained` takes; variant: of its files, "" for the plain ones.
    device: of PyTorch; "" takes a GPU if there is one (in float16, else float32).
    strength: how much of an `init_image` is repainted, 0 to 1.
    """

    model: str = "stabilityai/stable-diffusion-xl-base-1.0"
    variant: str = "fp16"
    device: str = ""
    strength: float = 0.6

    name = "diffusers"
    supports = frozenset({*DEFAULTS, "seed", "init_image"})

    def __post_init__(self):
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength!r}, expected a number, over 0 up to 1")

    def generate(self, prompt, *, init_image=None, **values):
        """See `ImageBackend`. Width and height are multiples of 8."""
        values = {k: DEFAULTS.get(k) if v is None else v for k, v in values.items()}
        for side in ("width", "height"):
            if values[side] % 8:
                raise ValueError(f"{side} is {values[side]}, expected a multiple of 8 for SDXL")
        run, size = self._text_to_image, {k: values[k] for k in ("width", "height")}
        if init_image is not None:
            run = self._image_to_image
            start = init_image.convert("RGB").resize((size["width"], size["height"]))
            size = {"image": start, "strength": self.strength}
        import torch

        generator = torch.Generator("cpu").manual_seed(values["seed"])  # the same noise anywhere
        try:
            result = run(
                prompt=prompt,
                negative_prompt=values["negative_prompt"],
                num_inference_steps=values["steps"],
                guidance_scale=float(values["guidance"]),
                generator=generator,
                **size,
            )
        except (RuntimeError, ValueError) as error:  # out of memory, a size that it refuses, ...
            raise ImageGenError(f"diffusers: painting failed ({error})") from error
        used = {"model": self.model}
        if init_image is not None:
            used["strength"] = self.strength
        return result.images[0], values | used

    @functools.cached_property
    def _text_to_image(self):
        try:
            import diffusers
            import torch
        except ImportError as error:
            raise ImageGenError(
                f"the image back end 'diffusers' needs packages ({error}): "
                "pip install 'mgm-jax[gen]'; 'placeholder' needs none"
            ) from error
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
                self.model,
                variant=self.variant or None,
                dtype=torch.float32 if device == "cpu" else torch.float16,
                use_safetensors=True,
                add_watermarker=False,
            )
            return pipeline.to(device)
        except (OSError, ValueError, RuntimeError) as error:
            raise ImageGenError(f"diffusers: cannot load {self.model!r} ({error})") from error

    @functools.cached_property
    def _image_to_image(self):
        from diffusers import StableDiffusionXLImg2ImgPipeline

        return StableDiffusionXLImg2ImgPipeline(**self._text_to_image.components)
