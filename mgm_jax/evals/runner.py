"""Answers the questions of tasks with a model on a mesh, and writes what came of it.

One program over all processes: they read the same tasks, take the same batches in the same order,
and each appends the answers of its own rows. Whatever is answered is skipped by a rerun, on
whatever number of processes.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from mgm_jax.api import LoadedModel
from mgm_jax.data.examples import Example
from mgm_jax.data.files import write_json
from mgm_jax.distributed import anywhere, first_process_does
from mgm_jax.evals import outcome
from mgm_jax.evals.answers import Answer, Answers
from mgm_jax.evals.tasks import Task, question_hash, read_tasks
from mgm_jax.generate.batches import Continuation, Generator, plan
from mgm_jax.generate.prompts import Request
from mgm_jax.generate.sampling import Sampling
from mgm_jax.preemption import StopSignals, Votes
from mgm_jax.program import Program
from mgm_jax.settings import fingerprint
from mgm_jax.switches import choose
from mgm_jax.text import get_template, stop_rule


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated. `name` stands in prediction lines; `content` tells its weights from all
    others; `checkpoint` is where they come from, for a reader."""

    model: LoadedModel
    mesh: Mesh
    name: str
    content: str
    checkpoint: str


def state_subject(
    config: ConfigDict, program: Program, params, tokenizer, template: str, workdir, step: int
) -> Subject:
    """The model of a training run after `step` steps."""
    model = dataclasses.replace(program.model, drop_path=0.0, remat="none")
    provenance = {"config.json": {"tokenizer_model_max_length": config.data.length}}
    switches = {name: config.switches.get(name, value) for name, value in choose("load").items()}
    model = LoadedModel(model, params, tokenizer, template, provenance, switches)
    content = f"{fingerprint(config)} step {step}"
    return Subject(model, program.mesh, f"step_{step}", content, f"{workdir}, step {step}")


class Runner:
    """Runs tasks. `config` as `configs.common.eval_config` has it; `after_batch` is called after
    each batch, and may raise to end the evaluation: what is answered is kept."""

    def __init__(
        self, subject: Subject, config: ConfigDict, after_batch: Callable[[], None] = lambda: None
    ):
        self._subject, self._config, self._after_batch = subject, config, after_batch
        model = subject.model
        self._generator = Generator(
            model.module, model.params, subject.mesh, batch=config.batch, threads=config.threads
        )
        self._stop = stop_rule(get_template(model.template), model.tokenizer)

    def __call__(self, tasks: Sequence[Task], out: epath.PathLike, judge=None) -> dict[str, Any]:
        """Answers and scores all tasks; writes and returns `OUT/results.json`.

        Processes but the first one return {}, and have written their answers alone. ValueError for
        an `out` that holds answers of another model or of other settings, and, when all is written,
        for tasks that could not be scored.
        """
        begin, out = time.monotonic(), epath.Path(out)
        found, failed, answered = {}, [], 0
        logs = [self._open(task, out / task.name) for task in tasks]  # refuse before any compile
        for task, log in zip(tasks, logs, strict=True):
            answered += self._answer(task, log)
            if jax.process_index() == 0:
                try:
                    found[task.name] = self._finish(task, log, out / task.name, judge)
                except (ValueError, OSError) as error:  # of a judge, say; the others go on
                    failed.append(f"{task.name}: {error}")
        results = {
            "checkpoint": self._subject.checkpoint,
            "model": self._subject.name,
            "template": self._subject.model.template,
            "benchmarks": found,
            "questions": sum(task.asked for task in tasks),
            "errors": sum(scores["errors"] for scores in found.values()),
            "settings": self._settings() | {"batch": self._config.batch},
            "answered": answered,
            "seconds": round(time.monotonic() - begin, 1),
        }

        def write() -> None:
            write_json(out / "results.json", results)
            if failed:
                raise ValueError("; ".join(failed))

        first_process_does(write)
        return results if jax.process_index() == 0 else {}

    def _settings(self) -> dict[str, Any]:
        """What answers depend on beside the weights, the question and its benchmark."""
        model = self._subject.model
        return {
            "template": model.template,
            "tokenizer": model.tokenizer.fingerprint,
            "dtype": model.module.dtype,
            "switches": dict(model.switches),
        }

    def _open(self, task: Task, folder: epath.Path) -> Answers:
        identity = {"model": self._subject.content} | self._settings()
        identity["generation"] = task.generation._asdict()
        log = Answers(folder, identity, [question_hash(q) for q in task.questions])
        first_process_does(log.begin)
        log.check()
        log.read()
        return log

    def _answer(self, task: Task, log: Answers) -> int:
        """Answers what has no answer yet, and returns how many those are."""
        done = np.zeros(len(task.questions), bool)
        done[[i for i, a in log.read().items() if a.error is None]] = True
        if jax.process_count() > 1:  # a shared folder may show a process less than another
            done = multihost_utils.broadcast_one_to_all(done)
        open_ones = [i for i in range(task.asked) if not done[i]]
        prompts, numbers, refused = [], [], []
        for i in open_ones:
            try:
                prompts.append(self._prompt(task, i))
                numbers.append(i)
            except ValueError as error:
                refused.append(Answer(i, "", 0, "", None, str(error)))
        process = jax.process_index()
        if process == 0:
            log.append(process, refused)
        c = self._config
        batches = plan(prompts, c.batch, c.window, c.round)
        how = {"sampling": sampling_of(task), "stop": self._stop[0]}
        bar = tqdm(
            desc=task.name,
            total=task.asked,
            initial=task.asked - len(prompts),
            unit="question",
            mininterval=2,
            dynamic_ncols=True,
            disable=process != 0,
        )
        with bar:
            for rows, found in self._generator.run(prompts, numbers, batches, **how):
                log.append(process, [self._read(numbers[m], c) for m, c in found.items()])
                bar.update(len(rows.members))
                self._after_batch()
        log.close()
        anywhere(False)  # all answers are on the disk
        return len(open_ones)

    def _prompt(self, task: Task, index: int) -> Example:
        question = task.questions[index]
        images = [io.BytesIO(x) if isinstance(x, bytes) else x for x in question.images]
        return self._subject.model.encode(Request([("user", question.prompt)], images))

    def _read(self, index: int, found: Continuation) -> Answer:
        """Ids -> text, cut where the template ends an answer."""
        if found.error:
            return Answer(index, "", 0, "", None, found.error)
        ids, strings = self._stop
        try:
            text = self._subject.model.tokenizer.decode([i for i in found.ids if i not in ids])
        except ValueError as error:  # an id that the tokenizer has not
            return Answer(index, "", len(found.ids), "", found.margin, f"the reply: {error}")
        ended = found.ids[-1] in ids
        for string in strings:
            text, stop, _ = text.partition(string)
            ended = ended or bool(stop)
        return Answer(index, text, len(found.ids), "stop" if ended else "length", found.margin)

    def _finish(self, task: Task, log: Answers, folder: epath.Path, judge) -> dict[str, Any]:
        answers = log.read()
        if missing := [i for i in range(task.asked) if i not in answers]:
            raise OSError(
                f"{folder}: {len(missing)} answers of other processes are not there, number "
                f"{missing[0]} for one; --out has to be a folder that all processes share"
            )
        return outcome.write(task, answers, folder, self._subject.name, judge)


def checked_tasks(config: ConfigDict) -> list[Task]:
    """The tasks of a config; what is wrong with them is told before a model is loaded."""
    tasks = read_tasks(config.to_dict())
    for task in tasks:
        sampling_of(task)
    return tasks


def heed(stop: StopSignals, mesh: Mesh) -> Callable[[], None]:
    """A function to be called after each batch: raises Stopped when any process was told to."""
    votes = Votes(mesh, 1)

    def after_batch() -> None:
        (told,) = votes(stop.told is not None)
        if told:
            raise stop.stopped("after a batch, whose answers are kept")

    return after_batch


def sampling_of(task: Task) -> Sampling:
    """How answers of a task are drawn; ValueError for settings that there are not."""
    given = {k: v for k, v in task.generation._asdict().items() if v is not None}
    try:
        return Sampling(**given)
    except ValueError as error:
        raise ValueError(f"config.benchmarks.{task.name}.generation.{error}") from None
