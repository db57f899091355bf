"""mgm_jax: Mini-Gemini (arXiv 2403.18814) for TPU pods, in JAX and Flax."""

__version__ = "0.1.0"
__all__ = ["Request", "load", "save"]


def __getattr__(name: str):
    """`load`, `save` and `Request`, imported when first used: `import mgm_jax` imports no jax."""
    if name not in __all__:
        raise AttributeError(f"module 'mgm_jax' has no attribute {name!r}")
    from mgm_jax import api

    return getattr(api, name)
