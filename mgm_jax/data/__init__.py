"""Training data on the host: sources, pictures, examples and the grain pipeline."""

from mgm_jax.data.images import ImageError, load_image, preprocess, to_hr, to_rgb
from mgm_jax.data.sources import LlavaJson, Record

__all__ = ["ImageError", "LlavaJson", "Record", "load_image", "preprocess", "to_hr", "to_rgb"]
