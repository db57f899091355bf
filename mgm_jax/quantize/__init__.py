"""Weight-only quantisation of a model: int8, int4 and NF4 (the arithmetic is in `ops.quant`)."""
