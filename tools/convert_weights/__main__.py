"""`python -m tools.convert_weights from-hf ...` is `mgm-jax convert from-hf ...`."""

import sys

from mgm_jax.cli import main

main(["convert", *sys.argv[1:]])
