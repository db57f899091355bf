"""Runs as files: each has `get_config(arg)`. Installed as `mgm_jax.configs`."""
