"""MGM-13B and MGM-13B-HD, on Vicuna 13B: arguments in configs/variants.py."""

from mgm_jax.configs import variants


def get_config(arg=None):
    return variants.get_config("MGM-13B", arg)
