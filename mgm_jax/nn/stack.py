"""Depth: the one place that knows scan and rematerialisation."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

_policies = jax.checkpoint_policies
_names = _policies.save_only_these_names
REMAT_POLICIES = {
    "none": None,  # keep every activation
    "full": _policies.nothing_saveable,  # but the layers' inputs
    # The products with weights, in the memory of the host: it has a hundred times the room, at
    # PCIe's speed.
    "offload": _policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}
# What else the backward pass may keep, parts joined by "+".
KEPT = {
    "attention": _names("attention"),  # what the kernel's backward pass reads
    "qkv": _names("attention", "query", "key", "value"),
    "out": _names("attention_out"),
    "gate": _names("gate"),  # of an MLP, or of experts
    "up": _names("up"),
    # Every product with weights that the backward pass reads, and the tokens of experts, gathered
    # from the devices that share them.
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _names("gate", "up", "tokens")
    ),
    # Weights as they were gathered for the forward pass, of all layers; where `ops.ring` does it.
    "weights": _names("whole_kernel"),
}


def remat_policy(remat: str):
    """What `remat` names: one of `REMAT_POLICIES`, or parts of `KEPT` joined by "+"; ValueError for
    another name."""
    if remat in REMAT_POLICIES:
        return REMAT_POLICIES[remat]
    parts = remat.split("+")
    if set(parts) - set(KEPT):
        raise ValueError(
            f"remat is {remat!r}, expected one of {', '.join(REMAT_POLICIES)}, or some of "
            f"{', '.join(KEPT)}, joined by +"
        )
    return functools.reduce(_policies.save_from_both_policies, (KEPT[part] for part in parts))


def stack(block: type[nn.Module], depth: int, *, remat: str = "none", scan: bool = True):
    """A module class that applies `depth` copies of `block`, parameters stacked on axis 0.

    `block.__call__(x, shared, layer) -> (x, layer_out)`: `shared` goes to every layer unchanged,
    `layer` and `layer_out` are pytrees with a leading layer axis (a KV cache, or None).
    `scan=False` unrolls the loop; the parameters are the same. `remat` names what the backward pass
    keeps: see `remat_policy`.
    """
    if policy := remat_policy(remat):
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
