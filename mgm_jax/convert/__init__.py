"""Weights in and out: PyTorch (Hugging Face) names and layouts against ours. numpy only."""
