"""Ways to start a run: here, on TPU VMs, on GKE, on SLURM. `python -m launch.WAY --help`.

To be run from the repository's root. What costs money only prints its commands until `--execute`.
"""
