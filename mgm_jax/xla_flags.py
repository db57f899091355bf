"""XLA's options for each generation of TPUs, in one place: `plan` compiles with what runs get.

Options of a compile (`jit(..., compiler_options=options(mesh))`), not of the environment, so that
one process can serve several programs.
"""

from __future__ import annotations

from jax.sharding import Mesh

from mgm_jax.topologies import KINDS

# Without these, XLA splits a product with a gathered weight into rounds of permutes and small
# products where the activations are large: a step of 7B on v5p-64 took 2.8 s instead of 1.5 s.
WHOLE_PRODUCTS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}

# Tried and left out: offload of all-reduces to v5p's SparseCores
# (xla_tpu_enable_sparse_core_collective_offload_all_reduce) makes them asynchronous, but no
# estimator here can say what they then cost; 7B on v5p-64: 52.6 % MFU if they cost nothing.

# generation -> option -> value.
OPTIONS: dict[str, dict[str, str]] = {
    "v5e": WHOLE_PRODUCTS,
    "v5p": WHOLE_PRODUCTS,
    "v6e": WHOLE_PRODUCTS,
}


def options(mesh: Mesh) -> dict[str, str] | None:
    """Those of the chips of a mesh; None where there are none."""
    return OPTIONS.get(KINDS.get(mesh.devices.flat[0].device_kind))
