"""Depth: the one place that knows scan and rematerialisation."""

from __future__ import annotations

import flax.linen as nn
import jax

_saved = jax.checkpoint_policies
_attention = _saved.save_only_these_names("attention")  # what the kernel's backward pass reads
_products = _saved.save_from_both_policies(  # with weights, and what experts multiply
    _saved.dots_with_no_batch_dims_saveable,
    _saved.save_only_these_names("expert_tokens", "expert_gate", "expert_up"),
)
REMAT_POLICIES = {
    "none": None,  # keep every activation
    "full": _saved.nothing_saveable,  # but the layers' inputs
    "attention": _attention,
    "qkv": _saved.save_only_these_names("attention", "query", "key", "value"),
    "dots": _products,
    "dots+attention": _saved.save_from_both_policies(_products, _attention),
    # As "dots", in the memory of the host: it has a hundred times the room, at PCIe's speed.
    "offload": _saved.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def stack(block: type[nn.Module], depth: int, *, remat: str = "none", scan: bool = True):
    """A module class that applies `depth` copies of `block`, parameters stacked on axis 0.

    `block.__call__(x, shared, layer) -> (x, layer_out)`: `shared` goes to every layer unchanged,
    `layer` and `layer_out` are pytrees with a leading layer axis (a KV cache, or None).
    `scan=False` unrolls the loop; the parameters are the same. `remat` names what the backward pass
    keeps: see `REMAT_POLICIES`; another name is a ValueError.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat is {remat!r}, expected one of {sorted(REMAT_POLICIES)}")
    if policy := REMAT_POLICIES[remat]:
        block = nn.remat(block, prevent_cse=not scan, policy=policy)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "drop_path": True, "dropout": True},
        in_axes=(nn.broadcast, 0),
        out_axes=0,
        length=depth,
        unroll=1 if scan else depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
