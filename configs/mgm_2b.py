"""MGM-2B and MGM-2B-HD, on Gemma 2B: arguments in configs/variants.py."""

from mgm_jax.configs import variants


def get_config(arg=None):
    return variants.get_config("MGM-2B", arg)
