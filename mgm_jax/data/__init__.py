"""Training data on the host: sources, pictures, examples and the grain pipeline."""

import importlib

HOLDERS = {  # what this package gives -> the module that has it
    "Encoded": "records",
    "ImageError": "images",
    "LlavaJson": "sources",
    "PictureFile": "records",
    "Record": "records",
    "load_image": "images",
    "preprocess": "images",
    "to_hr": "images",
    "to_rgb": "images",
}
__all__ = list(HOLDERS)


def __getattr__(name: str):
    """Imported when first used: `mgm_jax.data.files` alone imports no jax."""
    if name not in HOLDERS:
        raise AttributeError(f"module 'mgm_jax.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mgm_jax.data.{HOLDERS[name]}"), name)
