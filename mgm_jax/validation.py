"""What is measured while training, beside the steps themselves: `config.eval`.

The loss on held-out data (`eval_loss`) and the benchmarks of eval configs (`eval/NAME/NUMBER`), on
the mesh and with the parameters of the run. Everything is read and checked before the first step.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import jax
from etils import epath
from ml_collections import ConfigDict

from mgm_jax import sharding
from mgm_jax.data.pipeline import ahead, iterate
from mgm_jax.data.stream import Stream, open_stream
from mgm_jax.distributed import first_process_does
from mgm_jax.evals.runner import Runner, checked_tasks, state_subject
from mgm_jax.evals.tasks import Task
from mgm_jax.generate.batches import held_rows
from mgm_jax.preemption import StopSignals, Votes
from mgm_jax.run import Run
from mgm_jax.settings import TrainingError, read_config


class Told(Exception):
    """The run was told to stop while it was measured."""


class Validation:
    """Measures a run. ValueError or OSError for what is wrong with `config.eval`."""

    def __init__(self, run: Run, workdir: epath.Path):
        config, mesh = run.config, run.program.mesh
        self._run, self._folder = run, workdir / "eval"
        self._votes = Votes(mesh, 1)
        model = dataclasses.replace(run.program.model, drop_path=0.0, remat="none")
        self._held_out = _held_out(run, workdir) if config.eval.loss.path else None
        self._loss = jax.jit(lambda params, batch: model.apply(params, batch, method="loss"))
        self._configs: dict[str, tuple[ConfigDict, list[Task]]] = {}
        for file in config.eval.configs:
            name = epath.Path(file.partition(":")[0]).stem
            if name in self._configs:
                raise TrainingError(f"config.eval.configs has {name!r} twice")
            asked = read_config(file, key="benchmarks")
            held_rows(mesh, asked.batch)
            self._configs[name] = asked, checked_tasks(asked)
        tasks = [task for _, tasks in self._configs.values() for task in tasks]
        names = [f"eval/{task.name}/{number}" for task in tasks for number in task.numbers]
        if twice := [name for name in names if names.count(name) > 1]:
            raise TrainingError(f"config.eval.configs measure {twice[0]} twice")
        names += ["eval_loss"] if self._held_out else []
        best, every = config.checkpoint.best, config.eval.every
        if best and best.startswith("eval"):
            if best not in names:
                found = ", ".join(names) or "nothing"
                raise TrainingError(f"config.checkpoint.best is {best!r}, config.eval has {found}")
            if config.checkpoint.every % every:
                raise TrainingError(
                    f"config.checkpoint.best is {best!r}, which is measured every {every} steps, "
                    f"but a state is saved every {config.checkpoint.every}: make "
                    "config.checkpoint.every a multiple of config.eval.every"
                )

    def __call__(
        self, step: int, params, stop: StopSignals, beat: Callable[[], None]
    ) -> dict[str, float]:
        """Numbers after `step` steps, by name; in all processes but the first without benchmarks'.

        {} if a signal came, which the loop then sees. `beat` is called after each batch.
        """

        def after_batch() -> None:
            beat()
            if self._votes(stop.told is not None)[0]:
                raise Told

        try:
            found = self._held_out_loss(params, after_batch) if self._held_out else {}
            return found | self._benchmarks(step, params, after_batch)
        except Told:
            return {}

    def _held_out_loss(self, params, after_batch: Callable[[], None]) -> dict[str, float]:
        stream, mesh = self._held_out, self._run.program.mesh
        groups = stream.schedule.groups
        held = sharding.held_groups(mesh, groups)
        batches = iterate(stream.batches(held), 0, threads=self._run.config.data.threads)
        placed = (
            sharding.place_batch(next(batches), mesh, groups, held)
            for _ in range(stream.schedule.steps())
        )
        total = weight = 0.0
        for batch in ahead(placed, 1):
            sums = self._loss({"params": params}, batch)
            total, weight = total + float(sums[0]), weight + float(sums[1])
            after_batch()
        return {"eval_loss": total / weight}

    def _benchmarks(self, step: int, params, after_batch) -> dict[str, float]:
        run, folder = self._run, self._folder / f"step_{step}"
        first_process_does(lambda: folder.rmtree(missing_ok=True))  # of a run that was killed
        text = (run.stream.tokenizer, run.stream.template)
        subject = state_subject(run.config, run.program, params, *text, self._folder.parent, step)
        found = {}
        for name, (config, tasks) in self._configs.items():
            results = Runner(subject, config, after_batch)(tasks, folder / name)
            for task, scores in results.get("benchmarks", {}).items():
                found |= {f"eval/{task}/{n}": float(v) for n, v in scores["summary"].items()}
        return found


def open_validation(run: Run, workdir: epath.Path) -> Validation | None:
    """What `config.eval` asks for; None if that is nothing."""
    asked = run.config.eval
    return Validation(run, workdir) if asked.configs or asked.loss.path else None


def _held_out(run: Run, workdir: epath.Path) -> Stream:
    """One pass over the held-out records, in rows like the run's."""
    config = copy.deepcopy(run.config)
    with config.unlocked():
        config.data.sources = {"held_out": dict(config.eval.loss)}
        config.steps, config.epochs, config.accumulate = 0, 1, 1
        config.data.slots = config.data.group_rows = None
        config.data.index = None
    shards = sharding.batch_shards(run.program.mesh)
    return open_stream(config, shards=shards, index=str(workdir / "index"))
