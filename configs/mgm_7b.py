"""MGM-7B and MGM-7B-HD, on Vicuna 7B: arguments in configs/variants.py."""

from mgm_jax.configs import variants


def get_config(arg=None):
    return variants.get_config("MGM-7B", arg)
