"""Compiled programs, kept from one run of a command to the next."""

from __future__ import annotations

import os
from pathlib import Path

import jax

WORTH = 0.2  # seconds of compiling, from which on a program is kept


def keep_compiled() -> None:
    """Turns JAX's persistent compilation cache on, for commands: a library leaves this to its user.

    Programs are kept in `~/.cache/mgm_jax/compiled` (under `XDG_CACHE_HOME` where that is set).
    JAX's own variables go before: `JAX_COMPILATION_CACHE_DIR` for another place,
    `JAX_ENABLE_COMPILATION_CACHE=false` for none, `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`.
    """
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "mgm_jax" / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH)
