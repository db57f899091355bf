"""What a compiled job means: fits or not, seconds, MFU, money; as a dict and as a table."""

from __future__ import annotations

import dataclasses
import math

from ml_collections import ConfigDict

from mgm_jax import flops
from mgm_jax.models.config import MgmConfig
from mgm_jax.ops.mesh import BATCH_AXES
from mgm_jax.plan.compile import Compiled
from mgm_jax.plan.hlo import Program
from mgm_jax.plan.job import Shape, batch_shape, picture_rate, plan_of
from mgm_jax.plan.timing import Timing, time_program
from mgm_jax.topologies import Topology

GIB = 2**30
EXAMPLES = {1: 1.2e6, 2: 1.5e6}  # of the published data, by stage (MGM_SPEC 6.1)
WASTE = 0.02  # of a row's tokens that packing leaves empty
# The keys of a report that are None where a program does not fit.
TIMED = ("step_seconds_estimate", "mfu_estimate", "exposed_collective_fraction", "dominates")


def timings(compiled: Compiled, place: Topology) -> Timing | None:
    """The estimated times of a program; None where it did not compile for want of memory."""
    if compiled.oom:
        return None
    chip, program = place.chip, Program(compiled.text())
    return time_program(program, chip, compiled.coords, compiled.slices, chip.ring)


def memory(compiled: Compiled, place: Topology) -> dict:
    """The keys of a report that say whether a program fits."""
    rest = max(0, compiled.peak - sum(compiled.kinds.values()))
    kinds = compiled.kinds | {"activations and temporaries": rest}
    return {
        "fits": compiled.oom is None and compiled.peak <= place.chip.hbm * GIB,
        "hbm_peak_gib": round(compiled.peak / GIB, 3),
        "hbm_limit_gib": place.chip.hbm,
        "hbm_by_kind": {k: round(v / GIB, 4) for k, v in kinds.items()},
        "compile_seconds": compiled.seconds,
        "mesh": compiled.mesh,
        "topology": place.name,
        "chips": place.chips,
        "versions": compiled.versions,
    } | ({"out_of_memory": compiled.oom[:4000]} if compiled.oom else {})


def training_report(
    compiled: Compiled,
    place: Topology,
    config: ConfigDict,
    cfg: MgmConfig,
    text_only: bool = False,
) -> dict:
    """The report of a training step, with the keys that docs/plan.md lists."""
    report, timing = memory(compiled, place), timings(compiled, place)
    shards = math.prod(compiled.mesh[axis] for axis in BATCH_AXES)
    shape = batch_shape(config, cfg, shards, text_only)
    useful = flops.step(
        cfg,
        rows=shape.rows,
        length=shape.length,
        pictures=shape.pictures,
        trained=plan_of(config, cfg).whole,
    )
    report |= {
        "model_tflop_per_chip": round(useful / place.chips / 1e12, 3),
        "remat": config.remat,
        "accumulate": config.accumulate,
        "batch": dataclasses.asdict(shape),
    }
    if timing is None:
        return report | dict.fromkeys(TIMED) | {"collectives": {}}
    report |= timed(timing, useful, place)
    seconds = timing.seconds
    tokens = shape.rows * shape.length / seconds
    report["tokens_per_second"] = round(tokens, 1)
    report["tokens_per_second_per_chip"] = round(tokens / place.chips, 1)
    if not text_only:
        report["epoch"] = epoch(config, cfg, shape, seconds, place)
    return report


def epoch(config, cfg, shape: Shape, seconds: float, place: Topology) -> dict:
    """Steps and chip-hours of a pass over the published data of the stage.

    A row holds `picture_rate` examples of a picture each; what the data really packs to is known
    when it has been read (`mgm-jax data check`).
    """
    stage = 2 if "llm" in plan_of(config, cfg).modules else 1
    a_row = max(1.0, picture_rate(config, cfg))
    steps = math.ceil(EXAMPLES[stage] / (a_row * shape.rows * (1 - WASTE)))
    hours = steps * seconds / 3600
    return {
        "examples": int(EXAMPLES[stage]),
        "examples_per_row": a_row,
        "steps": steps,
        "hours": round(hours, 2),
        "chip_hours": round(hours * place.chips, 1),
    }


def timed(timing: Timing, useful: float, place: Topology) -> dict:
    """The keys of a report that come from a program's estimated times."""
    seconds, peak = timing.seconds, place.chip.peak
    kind, most = max(timing.split.items(), key=lambda item: item[1])
    module, part = max(timing.modules.items(), key=lambda item: item[1])
    return {
        "step_seconds_estimate": round(seconds, 5),
        "mfu_estimate": round(useful / place.chips / peak / seconds, 4),
        "hfu_estimate": round(timing.flops / peak / seconds, 4),
        "hardware_tflop_per_chip": round(timing.flops / 1e12, 3),
        "exposed_collective_fraction": round(timing.split.get("collective", 0.0) / seconds, 4),
        "collectives": {
            kind: {
                "count": round(t.count),
                "gib": round(t.bytes / GIB, 3),
                "seconds": round(t.seconds, 5),
                "exposed_seconds": round(t.exposed, 5),
            }
            for kind, t in sorted(timing.traffic.items())
        },
        "dominates": f"{kind} ({most / seconds:.0%} of the step); {module} ({part / seconds:.0%})",
        "split": _sorted(timing.split),
        "modules": _sorted(timing.modules),
        "kernels": _sorted(timing.kernels),
        "top": [[name, round(value, 5)] for name, value in timing.top],
        "warnings": timing.warnings,
    }


def _sorted(seconds: dict[str, float]) -> dict[str, float]:
    found = sorted(seconds.items(), key=lambda item: -item[1])
    return {name: round(value, 5) for name, value in found if value > 5e-6}


# ---------------------------------------------------------------------------------------- a table


def table(report: dict) -> str:
    """A report for people."""
    mesh = " x ".join(f"{k} {v}" for k, v in report["mesh"].items() if v > 1) or "one chip"
    used = report["hbm_peak_gib"] / report["hbm_limit_gib"]
    lines = [
        f"{report['topology']}: {report['chips']} chips, {mesh}",
        f"  {'fits' if report['fits'] else 'DOES NOT FIT'}: {report['hbm_peak_gib']:.2f} of "
        f"{report['hbm_limit_gib']} GiB a chip ({used:.0%})",
    ]
    lines += [f"    {k:28} {v:8.3f} GiB" for k, v in report["hbm_by_kind"].items()]
    if report.get("out_of_memory"):
        lines += ["  the compiler says:", *_indented(report["out_of_memory"])]
    for name, value in report.get("serving", {}).items():
        lines.append(f"  {name.replace('_', ' ')}: {value}")
    if report.get("step_seconds_estimate") is None:
        return "\n".join(lines)
    seconds = report["step_seconds_estimate"]
    lines.append(
        f"  step {seconds * 1e3:.1f} ms, MFU {report['mfu_estimate']:.1%} (hardware "
        f"{report['hfu_estimate']:.1%}), {report['model_tflop_per_chip']:.1f} useful TFLOP a chip"
    )
    lines.append(f"  most of it: {report['dominates']}")
    for title in ("split", "modules"):
        lines.append(f"  {title}:")
        lines += [
            f"    {k:28} {v * 1e3:8.1f} ms  {v / seconds:6.1%}" for k, v in report[title].items()
        ]
    lines.append("  collectives, a chip:")
    lines += [
        f"    {kind:28} {t['count']:8} x  {t['gib']:8.2f} GiB  {t['seconds'] * 1e3:8.1f} ms, "
        f"{t['exposed_seconds'] * 1e3:.1f} of them waited for"
        for kind, t in report["collectives"].items()
    ]
    if "epoch" in report:
        e = report["epoch"]
        lines.append(
            f"  the published data: {e['steps']} steps, {e['hours']} hours, "
            f"{e['chip_hours']} chip-hours"
        )
    return "\n".join(lines + [f"  note: {w}" for w in report["warnings"][:5]])


def _indented(text: str) -> list[str]:
    return [f"    {line[:150]}" for line in text.splitlines()[:40] if line.strip()]
