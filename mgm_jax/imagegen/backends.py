"""The back ends by name, and their options as they are typed in a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mgm_jax.imagegen.base import ImageBackend
from mgm_jax.imagegen.diffusers import Diffusers
from mgm_jax.imagegen.openai_http import OpenaiHttp
from mgm_jax.imagegen.placeholder import Placeholder

BACKENDS = {cls.name: cls for cls in (Diffusers, OpenaiHttp, Placeholder)}
_TYPES = {"str": str, "float": float, "bool": lambda text: {"true": True, "false": False}[text]}


def make_backend(name: str, options: Iterable[str] = ()) -> ImageBackend:
    """A back end by its name and options "KEY=VALUE", the fields of its class.

    ValueError for what is unknown, missing or no value of the field; known names are listed.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown image back end {name!r}, known: {', '.join(BACKENDS)}")
    fields = {field.name: field for field in dataclasses.fields(BACKENDS[name])}
    values = {}
    for option in options:
        key, sign, text = option.partition("=")
        if not sign or key not in fields:
            known = ", ".join(f"{n}=..." for n in fields) or "none"
            raise ValueError(f"image back end {name!r} has no option {option!r}, known: {known}")
        try:
            values[key] = _TYPES[fields[key].type](text)
        except (ValueError, KeyError):
            raise ValueError(
                f"option {key} of image back end {name!r} is {text!r}, expected a "
                f"{fields[key].type}"
            ) from None
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if needed:
        raise ValueError(f"image back end {name!r} needs the option {needed[0]}=...")
    return BACKENDS[name](**values)
