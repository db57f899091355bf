"""MGM-8x7B and MGM-8x7B-HD, on Mixtral 8x7B: arguments in configs/variants.py."""

from mgm_jax.configs import variants


def get_config(arg=None):
    return variants.get_config("MGM-8x7B", arg)
