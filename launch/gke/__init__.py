"""Training on GKE's TPU slices: a JobSet, or the same by xpk. `python -m launch.gke --help`."""
