"""LoRA (arXiv 2106.09685): adapters in the parameter tree, PEFT's files, adapter directories."""
