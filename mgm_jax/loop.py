"""The training loop: step after step, what it measures, and what it keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax
from etils import epath

from mgm_jax import flops
from mgm_jax.boards import open_boards
from mgm_jax.guard import Guard
from mgm_jax.heartbeat import Heartbeat
from mgm_jax.metrics import DataMeter, Metrics
from mgm_jax.preemption import StopSignals, Votes
from mgm_jax.run import Run
from mgm_jax.settings import MEASURED
from mgm_jax.topologies import CHIPS, KINDS
from mgm_jax.training_state import TrainingState
from mgm_jax.validation import Validation


def loop(
    run: Run,
    states: TrainingState,
    workdir: epath.Path,
    start: int,
    name: str,
    stop: StopSignals,
    validation: Validation | None = None,
) -> None:
    """Steps `start` + 1 to `run.steps`, or as many as there are before a signal: then Stopped."""
    config, first = run.config, jax.process_index() == 0
    file = workdir / "metrics.jsonl" if first else None
    boards = open_boards(config.boards, workdir, config.to_dict(), start) if first else ()
    metrics = Metrics(file, start=start, total=run.steps, name=name, boards=boards)
    data, meter = run.counted_batches(start), DataMeter(jax.process_count())
    heartbeat = Heartbeat(workdir / "heartbeat", workdir / "stacks", config.stall_minutes)
    votes, speed = Votes(run.program.mesh, 2), Speed(run)
    guard = Guard(workdir, run.stream, states)
    tracing = profiling(config.profile, workdir)
    with contextlib.closing(metrics), heartbeat, tracing as profile, stop.patiently():
        for step in range(start + 1, run.steps + 1):
            profile(step)
            with meter.waiting():
                batch, counts = next(data)
            meter.add(counts)
            run.state, values = run.program.step(run.state, run.frozen, batch)
            guard.see(step, values)
            metrics.advance()
            heartbeat.beat()
            told, again = votes(stop.told is not None, states.again())
            last = told or step == run.steps
            log, save = (step % n == 0 or last for n in (config.log_every, config.checkpoint.every))
            save = save or again
            measured = {}
            if validation and not told and (step % config.eval.every == 0 or last):
                guard.settle()
                with meter.pausing():
                    measured = validation(step, run.params(), stop, heartbeat.beat)
            if log or save:
                guard.settle()
                values = {k: float(values[k]) for k in (*MEASURED, "loss_tokens")}
            if log:
                read = meter.read()
                metrics.write(step, values | read | speed(read) | measured)
            elif measured:
                metrics.write(step, measured)
            if save:
                states.save(step, run.state, run.identity, values | measured, last=last)
            if told and step < run.steps:
                raise stop.stopped(f"at step {step}, whose state is in {states.directory}")


class Speed:
    """Useful FLOPs of a run from what `DataMeter` reads: of a device a second, and as a share of
    its peak (MFU) where that is known."""

    def __init__(self, run: Run):
        trained, data = run.program.plan.whole, run.config.data
        self._rows = flops.step(
            run.cfg, rows=data.batch, length=data.length, pictures=0, trained=trained
        )
        self._picture = flops.step(run.cfg, rows=0, length=1, pictures=1, trained=trained)
        self._devices = run.program.mesh.size
        kind = KINDS.get(run.program.mesh.devices.flat[0].device_kind)
        self._peak = CHIPS[kind].peak if kind else None

    def __call__(self, read: dict[str, float]) -> dict[str, float]:
        a_second = self._rows / read["step_ms"] * 1e3 + self._picture * read["images_per_s"]
        a_second /= self._devices
        found = {"tflops_per_s": a_second / 1e12}
        if self._peak:
            found["mfu"] = a_second / self._peak
        return {name: float(f"{value:.4g}") for name, value in found.items()}


@contextlib.contextmanager
def profiling(window: tuple[int, ...], workdir: epath.Path) -> Iterator[Callable[[int], None]]:
    """A function to be called before each step: the profiler records from the first step of
    `window` to the one before its second, into `workdir`/profile."""
    first, behind = window or (0, 0)
    on = False

    def before(step: int) -> None:
        nonlocal on
        if on and step >= behind:
            jax.profiler.stop_trace()
            on = False
        elif not on and first <= step < behind:
            jax.profiler.start_trace(str(workdir / "profile"))
            on = True

    try:
        yield before
    finally:
        if on:
            jax.profiler.stop_trace()
