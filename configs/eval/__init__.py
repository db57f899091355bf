"""Evaluations as files, for `mgm-jax eval --config configs/eval/FILE.py[:args]`."""
