"""MGM-34B and MGM-34B-HD, on Nous Hermes 2 Yi 34B: arguments in configs/variants.py."""

from mgm_jax.configs import variants


def get_config(arg=None):
    return variants.get_config("MGM-34B", arg)
