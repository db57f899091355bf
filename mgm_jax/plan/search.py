"""`--fit`: mesh, remat and accumulation for a training step on a slice, the fastest that fits.

Candidates are ranked by an analytic model of memory and time, then compiled in that order until the
time is up. What the compiler says replaces the model's word, and corrects its memory for the rest.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable

from ml_collections import ConfigDict

from mgm_jax import flops
from mgm_jax.models.config import MgmConfig
from mgm_jax.plan import report
from mgm_jax.plan.compile import Compiled, PlanError, compile_job
from mgm_jax.plan.job import Job, batch_shape, plan_of
from mgm_jax.settings import TrainingError
from mgm_jax.topologies import Topology

# remat -> (floats a token and layer that are kept, as multiples of d, q, kv, mlp; share of the
# forward pass that is computed again).
KEPT = {
    "full": ((1, 0, 0, 0), 1.0),
    "qkv": ((1, 2, 2, 0), 0.75),
    "dots": ((3, 1, 2, 2), 0.05),
    "dots+attention": ((3, 2, 2, 2), 0.0),
}
MATMUL = 0.62  # of the peak that products reach in whole steps, before communication
TENSOR_COST = 0.15  # of the step, for each doubling of the tensor axis


@dataclasses.dataclass(frozen=True)
class Candidate:
    """`seconds` and `gib` a chip are the model's guess."""

    fsdp: int
    tensor: int
    expert: int
    remat: str
    accumulate: int
    seconds: float
    gib: float

    def overrides(self) -> tuple[str, ...]:
        return (
            f"--config.mesh.fsdp={self.fsdp}",
            f"--config.mesh.tensor={self.tensor}",
            f"--config.mesh.expert={self.expert}",
            f"--config.remat={self.remat}",
            f"--config.accumulate={self.accumulate}",
        )


def guess(config: ConfigDict, cfg: MgmConfig, place: Topology, c: dict) -> Candidate:
    """The model's word on a choice of mesh, remat and accumulation."""
    llm, chips = cfg.llm, place.chips
    trained = plan_of(config, cfg).whole
    shards = c["fsdp"] * c["expert"] * place.slices
    shape = batch_shape(config, cfg, shards)
    weights = _weights(cfg)
    state = weights * (12 if "llm" in trained else 2) / (chips / place.slices)
    gathered = 4 * weights / llm.layers / c["tensor"]  # a layer, and the next one
    tokens = shape.rows * shape.length / shards / c["accumulate"]
    multiples, again = KEPT[c["remat"]]
    q, kv = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    active = llm.mlp_dim * (llm.experts.per_token if llm.experts else 1)
    widths = (llm.dim, q, kv, active)
    floats = sum(
        m * w / (1 if i == 0 else c["tensor"])
        for i, (m, w) in enumerate(zip(multiples, widths, strict=True))
    )
    kept = 2 * tokens * llm.layers * floats
    working = tokens * (12 * active / c["tensor"] + 16 * llm.dim)
    working += 6 * llm.vocab_size * llm.dim / c["tensor"]  # the head, its gradient
    memory = state + gathered + kept + working + 2 * 2**30  # pictures
    if c["accumulate"] > 1:
        memory += 4 * weights / chips * place.slices
    useful = flops.step(
        cfg, rows=shape.rows, length=shape.length, pictures=shape.pictures, trained=trained
    )
    forward = shape.rows * flops.decoder(llm, shape.length)
    compute = (useful + again * forward) / chips / place.chip.peak / MATMUL
    compute *= 1 + TENSOR_COST * math.log2(c["tensor"])
    passes = (2 + (c["remat"] != "none")) * c["accumulate"]  # gathers, and the gradients' way back
    moved = 2 * weights / c["tensor"] / c["expert"] * passes
    wire = moved / (2 * place.chip.link)
    return Candidate(**c, seconds=compute + max(0, wire - compute / 2), gib=memory / 2**30)


def _weights(cfg: MgmConfig) -> float:
    """Parameters of the language model."""
    llm = cfg.llm
    q, kv = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    mlp = 3 * llm.dim * llm.mlp_dim * (llm.experts.count if llm.experts else 1)
    head = llm.vocab_size * llm.dim * (1 if llm.tied_embeddings else 2)
    return llm.layers * (2 * llm.dim * (q + kv) + mlp) + head


def candidates(config: ConfigDict, cfg: MgmConfig, place: Topology) -> list[Candidate]:
    """Every choice whose numbers divide, the model's fastest first among those it lets fit, then
    the others from the smallest up. TrainingError where nothing divides."""
    chips, found = place.chips // place.slices, []
    experts = [e for e in (1, 2, 4, 8) if cfg.llm.experts and cfg.llm.experts.count % e == 0]
    powers = [t for t in (1, 2, 4, 8) if cfg.llm.heads % t == 0]
    choices = itertools.product(powers, experts or [1], KEPT, (1, 2, 4, 8))
    for tensor, expert, remat, accumulate in choices:
        if chips % (tensor * expert):
            continue
        chosen = {
            "fsdp": chips // tensor // expert,
            "tensor": tensor,
            "expert": expert,
            "remat": remat,
            "accumulate": accumulate,
        }
        trial = config.copy_and_resolve_references()
        trial.accumulate = accumulate
        try:
            found.append(guess(trial, cfg, place, chosen))
        except TrainingError:
            continue
    if not found:
        raise TrainingError(
            f"config.data.batch is {config.data.batch}: it divides over no mesh of {place.name} "
            f"({place.chips} chips) with up to 8 for tensor"
        )
    return ranked(found, place.chip.hbm, 1.0)


def ranked(found: list[Candidate], limit: float, factor: float) -> list[Candidate]:
    """By seconds where memory, `factor` times the model's, is within the limit; then by memory."""

    def key(c: Candidate):
        over = c.gib * factor > limit
        return over, c.gib if over else c.seconds

    return sorted(found, key=key)


def fit(
    job: Job, place: Topology, minutes: float, say: Callable[[str], None]
) -> tuple[dict, list[Compiled]]:
    """The report of the fastest candidate that fits, with all that were compiled in `candidates`,
    and its programs. PlanError where none fits in the time."""
    config, cfg = job.read()
    left, tried, factor = candidates(config, cfg, place), [], 1.0
    end, best = time.monotonic() + 60 * minutes, None
    while left and (time.monotonic() < end or not tried):
        c = left.pop(0)
        if best and c.seconds > best[0]["step_seconds_estimate"] * 1.15:
            break  # the model is not further off than that between candidates
        trial = dataclasses.replace(job, overrides=(*job.overrides, *c.overrides()))
        begin = f"candidate {len(tried) + 1} ({c.remat}, tensor {c.tensor}, parts {c.accumulate})"
        compiled = compile_job(trial, lambda text, begin=begin: say(f"{begin}: {text}"))
        found = report.training_report(compiled[0], place, *trial.read())
        tried.append(
            {
                "overrides": list(c.overrides()),
                "fits": found["fits"],
                "hbm_peak_gib": found["hbm_peak_gib"],
                "step_seconds_estimate": found["step_seconds_estimate"],
                "mfu_estimate": found["mfu_estimate"],
                "guessed_gib": round(c.gib, 2),
                "guessed_seconds": round(c.seconds, 4),
            }
        )
        faster = (
            best is None
            or (found["step_seconds_estimate"] or math.inf) < (best[0]["step_seconds_estimate"])
        )
        if found["fits"] and faster:
            best = found, compiled, c
        if found["hbm_peak_gib"]:
            factor = max(factor, found["hbm_peak_gib"] / c.gib) if not found["fits"] else factor
        left = ranked(left, place.chip.hbm, factor)
        if not found["fits"]:  # what needs more by the model does not fit either
            left = [x for x in left if x.gib < c.gib]
    if best is None:
        peaks = ", ".join(f"{t['hbm_peak_gib']:.1f}" for t in tried)
        raise PlanError(
            f"nothing that was compiled in {minutes:g} minutes fits {place.name}: "
            f"{peaks} of {place.chip.hbm} GiB; take a larger slice, or more --minutes"
        )
    found, compiled, c = best
    return found | {"overrides": list(c.overrides()), "candidates": tried}, compiled


def table(tried: list[dict]) -> str:
    """What was compiled, for people."""
    lines = ["  compiled:"]
    for t in tried:
        seconds = t["step_seconds_estimate"]
        time_text = f"{seconds * 1e3:8.1f} ms, MFU {t['mfu_estimate']:.1%}" if seconds else "-"
        verdict = "fits" if t["fits"] else "does not fit"
        choice = " ".join(o.removeprefix("--config.") for o in t["overrides"])
        lines.append(f"    {verdict:12} {t['hbm_peak_gib']:7.2f} GiB  {time_text:26} {choice}")
    return "\n".join(lines)
