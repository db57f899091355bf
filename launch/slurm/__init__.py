"""Training on the GPUs of a SLURM cluster. `python -m launch.slurm --help`."""
