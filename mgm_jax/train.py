"""Training: `python -m mgm_jax.train --config configs/X.py[:arg] --workdir DIR [--config.a.b=v]`.

A run is (config, workdir). Rerunning the same command resumes from the newest state in
`workdir/state`; the finished model (with `config.lora`, the adapter) is written to `workdir/model`.
SIGTERM or Ctrl-C ends the step, saves, and leaves with exit code 75: the same command goes on from
there. `--export DIR` trains nothing: it writes the model of the newest state (or of `--step N`) to
DIR.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys

import jax
from etils import epath
from ml_collections import ConfigDict

from mgm_jax import distributed, start_report
from mgm_jax.checkpoint import CheckpointError, first_line, hush_stragglers, place, writing
from mgm_jax.compile_cache import keep_compiled
from mgm_jax.data.stream import check_identity
from mgm_jax.distributed import LOST, STOPPED, first_process_does
from mgm_jax.export import Snapshot, export_state, write_result
from mgm_jax.guard import NotFinite
from mgm_jax.loop import loop
from mgm_jax.preemption import Stopped, StopSignals
from mgm_jax.run import prepare
from mgm_jax.settings import add_config_argument, keep_config, read_config
from mgm_jax.training_state import open_states
from mgm_jax.validation import open_validation


def train(config: ConfigDict, workdir: epath.PathLike, *, name: str = "train") -> epath.Path:
    """Trains to `config.steps`, resuming if `workdir` has a state; returns the model's directory.

    Raises TrainingError, CheckpointError, or the data's errors, before any compile where possible;
    `preemption.Stopped` (a SystemExit) when a signal tells it to stop.
    """
    with StopSignals() as stop:
        try:
            return _train(config, place(workdir), name, stop)
        except Stopped as stopped:
            if jax.process_index() == 0:
                print(f"{name}: {stopped.text}", file=sys.stderr)
            raise


def _train(config: ConfigDict, workdir: epath.Path, name: str, stop: StopSignals) -> epath.Path:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CheckpointError(f"{workdir}: cannot write there ({e.strerror})") from e
    states = open_states(config, workdir)
    states.clear()
    start, kept = states.latest()
    run = prepare(config, kept=kept, index=str(workdir / "index"))
    start_report.check_unsharded(run)
    if kept:
        check_identity(run.identity, kept, states.directory)
    validation = open_validation(run, workdir)
    first_process_does(lambda: keep_config(config, workdir))
    with jax.set_mesh(run.program.mesh):
        if start:
            start, run.state = states.restore_newest(run.program.state)
            print(f"{name}: resumed at step {start}", file=sys.stderr)
        else:
            print("\n".join(run.program.plan.report), file=sys.stderr)
        if jax.process_index() == 0:
            text = start_report.report(run)
            print(text, file=sys.stderr)
            with writing(workdir, "the report"):
                (workdir / "report.txt").write_text(text + "\n")
        loop(run, states, workdir, start, name, stop, validation)
    states.close()
    parts = (run.cfg, run.program, run.state["params"], run.frozen)
    text = (run.stream.tokenizer, run.stream.template)
    made = Snapshot(*parts, *text, run.identity, run.steps)
    write_result(workdir / "model", config, made)
    return workdir / "model"


# ---------------------------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> None:
    """`--config FILE[:arg] --workdir DIR [--config.key=value]`; an error is one line, exit 1."""
    hush_stragglers()
    parser = argparse.ArgumentParser(
        prog="mgm-jax train",
        description=__doc__,
        epilog="configs/common.py lists the keys of a config.",
    )
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, help="where state and model go")
    parser.add_argument("--export", metavar="DIR", help="only write a saved state's model there")
    parser.add_argument("--step", type=int, help="of the state to export; default: the newest")
    args, rest = parser.parse_known_args(argv)
    if args.step is not None and not args.export:
        parser.error("--step is given without --export")
    try:
        distributed.initialize()
        keep_compiled()
        config = read_config(args.config, rest)
        if args.export:
            step = export_state(config, args.workdir, args.export, args.step)
            print(f"{args.export}: the model after step {step}", file=sys.stderr)
        else:
            train(config, args.workdir)
    except (AttributeError, KeyError, ValueError, OSError) as e:
        if isinstance(e, NotFinite) and jax.process_index() == 0:
            typed = shlex.join([f"--config={args.config}", *rest, f"--workdir={args.workdir}"])
            print(
                f"to see the batch: mgm-jax data replay {typed} --step {e.step - 1}",
                file=sys.stderr,
            )
        if jax.process_count() > 1:
            distributed.leave(1, f"error: {e}")
        raise SystemExit(f"error: {e}") from e
    except jax.errors.JaxRuntimeError as e:
        if jax.process_count() == 1 or not re.search(LOST, str(e)):
            raise
        line = f"train: another process of this run was lost ({first_line(e)})"
        distributed.leave(STOPPED, f"{line}; run the same command again to go on")


if __name__ == "__main__":
    main()
