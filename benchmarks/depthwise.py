"""Forms of the depthwise convolution, forward and backward, in one run: `make bench`.

Prints milliseconds (median of interleaved runs) and one line of JSON. The form that
`ops.depthwise` picks by itself on this backend should be the fastest one here.
"""

from __future__ import annotations

import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from mgm_jax.ops.depthwise import depthwise

SHAPES = {"demo stage 0": (16, 48, 48, 32, 3), "7x7": (2, 48, 48, 128, 7)}


def main(repeats: int = 7) -> None:
    result = {}
    for name, (b, h, w, c, k) in SHAPES.items():
        rng = np.random.default_rng(0)
        x, g = (jnp.asarray(rng.normal(size=(b, h, w, c)), jnp.float32) for _ in range(2))
        kernel = jnp.asarray(rng.normal(size=(k * k, c)), jnp.float32)

        def backward(x, kernel, g, form):
            return jax.vjp(lambda x, kernel: depthwise(x, kernel, form), x, kernel)[1](g)

        compiled = {
            form: jax.jit(backward, static_argnames="form").lower(x, kernel, g, form=form).compile()
            for form in ("shift", "conv")
        }
        times = {form: [] for form in compiled}
        for _ in range(repeats):
            for form, run in compiled.items():
                begin = time.perf_counter()
                jax.block_until_ready(run(x, kernel, g))
                times[form].append(1e3 * (time.perf_counter() - begin))
        for form, values in times.items():
            result[f"{name}, {form}"] = round(statistics.median(values), 2)
            print(f"{name:14s} {form:6s} forward + backward {result[f'{name}, {form}']:8.2f} ms")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
