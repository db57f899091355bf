"""Evaluates the states of a training run as they are saved, beside it."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mgm_jax.checkpoint import CheckpointError, place
from mgm_jax.data.files import read_json, write_json
from mgm_jax.distributed import anywhere
from mgm_jax.evals.common import Judge
from mgm_jax.evals.runner import Runner, Subject, checked_tasks, heed, state_subject
from mgm_jax.export import Snapshot, restore_model
from mgm_jax.preemption import StopSignals
from mgm_jax.settings import fingerprint, kept_config
from mgm_jax.training_state import open_states


def follow(
    config: ConfigDict,
    workdir: epath.PathLike,
    out: epath.PathLike,
    judge: Judge | None = None,
    *,
    poll: float = 30.0,
) -> dict:
    """Evaluates each state of the run in `workdir` into OUT/step_N, until the run is at its end.

    `config`: an evaluation's; its mesh, dtype and tower_batch are used, so that this needs not be
    where the run is; switches are the run's. Returns what OUT/results.json has, the results by step
    ({} in all processes but the first). A state that cannot be read (the run may have removed it)
    is left out. Raises as `evaluate.evaluate`; TrainingError where no run has begun.
    """
    with StopSignals() as stop:
        tasks, workdir, out = checked_tasks(config), place(workdir), place(out)
        run, first = kept_config(workdir), jax.process_index() == 0
        name = fingerprint(run)
        results = _begun(out / "results.json", name) | {"workdir": str(workdir)}
        found, left_out = results["steps"], set()
        with run.unlocked():
            run.mesh, run.tower_batch = config.mesh, config.tower_batch
        states = open_states(run, workdir)
        while True:
            over = anywhere((workdir / "model" / "mgm.json").exists())  # before looking for states
            open_ones = [n for n in states.steps() if str(n) not in found and n not in left_out]
            step = _agreed(min(open_ones, default=-1))
            if step >= 0:
                snapshot, error = None, None
                try:
                    snapshot = restore_model(run, workdir, step)
                except CheckpointError as e:
                    error = e
                    print(f"WARNING: {error}; step {step} is left out", file=sys.stderr)
                if anywhere(error is not None):
                    left_out.add(step)
                    continue
                subject = _subject(config, run, workdir, snapshot)
                with stop.patiently():
                    runner = Runner(subject, config, heed(stop, subject.mesh))
                    found[str(step)] = runner(tasks, out / f"step_{step}", judge)
                if first:
                    results["errors"] = sum(s["errors"] for s in found.values())
                    write_json(out / "results.json", results)
                    print(table(found), file=sys.stderr)
            elif over:
                return results if first else {}
            else:
                time.sleep(poll)  # a signal ends it here at once


def _subject(config: ConfigDict, run: ConfigDict, workdir, s: Snapshot) -> Subject:
    model = dataclasses.replace(s.program.model, dtype=config.dtype)
    program = dataclasses.replace(s.program, model=model)
    return state_subject(run, program, s.params, s.tokenizer, s.template, workdir, s.step)


def _begun(file: epath.Path, name: str) -> dict:
    """Results of an earlier call; ValueError for those of another run."""
    if not file.exists():
        return {"run": name, "steps": {}, "errors": 0}
    found = read_json(file, "results of an evaluation")
    if found.get("run") != name:
        raise ValueError(
            f"{file}: these are results of something else than this run; use another --out"
        )
    return found


def _agreed(step: int) -> int:
    """What process 0 says."""
    if jax.process_count() == 1:
        return step
    return int(multihost_utils.broadcast_one_to_all(np.int32(step)))


def table(steps: Mapping[str, dict]) -> str:
    """Results by step as a table: a line each, a column for each number."""
    rows = {
        int(step): {
            f"{name} {key}": f"{value:.2f}"
            for name, scores in results["benchmarks"].items()
            for key, value in scores["summary"].items()
        }
        for step, results in steps.items()
    }
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    lines = ["| step | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for step, row in sorted(rows.items()):
        lines.append("| " + " | ".join([str(step), *(row.get(c, "-") for c in columns)]) + " |")
    return "\n".join(lines)
