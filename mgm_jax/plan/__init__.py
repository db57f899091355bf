"""`mgm-jax plan`: what a run costs on a TPU slice, from the TPU compiler, without a TPU."""
