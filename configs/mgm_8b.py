"""MGM-8B and MGM-8B-HD, on LLaMA-3 8B: arguments in configs/variants.py."""

from mgm_jax.configs import variants


def get_config(arg=None):
    return variants.get_config("MGM-8B", arg)
