"""What a run leaves at its end, or in any state that it saved: a model, or an adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental.multihost_utils import process_allgather
from ml_collections import ConfigDict

from mgm_jax import sharding
from mgm_jax.checkpoint import Checkpoint, CheckpointError, describe, place, save_checkpoint
from mgm_jax.convert.overrides import with_switches
from mgm_jax.distributed import first_process_does
from mgm_jax.lora import directory as adapter_directory
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import Program, make_program
from mgm_jax.provenance import trained
from mgm_jax.run import adapter_base, bases, check_bases, computing_params, create, init_sources
from mgm_jax.settings import check_numbers, check_switches, fingerprint, read_model_config
from mgm_jax.text import load_tokenizer
from mgm_jax.text.tokenizer import Tokenizer
from mgm_jax.training_state import open_states
from mgm_jax.tree import base_name


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run as it was after `step` steps: the two parts of its parameters, and what goes with them.
    `identity`: as `Run.identity` says."""

    cfg: MgmConfig
    program: Program
    trainable: dict
    frozen: dict
    tokenizer: Tokenizer
    template: str
    identity: Mapping[str, Any]
    step: int

    @property
    def params(self) -> dict:
        """The whole model as it computes."""
        with jax.set_mesh(self.program.mesh):
            return computing_params(self.program, self.trainable, self.frozen)


def export_state(
    config: ConfigDict, workdir: epath.PathLike, directory: epath.PathLike, step: int | None = None
) -> int:
    """Writes the model (or adapter) of a run's newest state, or of `step`, to `directory`; returns
    the step.

    As `restore_model` has it.
    """
    found = restore_model(config, workdir, step)
    write_result(place(directory), config, found)
    return found.step


def restore_model(config: ConfigDict, workdir: epath.PathLike, step: int | None = None) -> Snapshot:
    """The model of a run's newest state, or of `step`.

    Needs the bases in `init`, but no training data, and no more memory than the model's parameters
    on the mesh of `config` (which need not be the run's). CheckpointError, TrainingError.
    """
    check_numbers(config)
    states = open_states(config, workdir)
    newest, kept = states.latest()
    if kept is None or (step is not None and step not in states.steps()):
        wanted = "any step" if step is None else f"step {step}"
        found = ", ".join(map(str, states.steps())) or "none"
        raise CheckpointError(f"{states.directory}: no state of {wanted}, found {found}")
    step = newest if step is None else step
    cfg, tokenizer, template = read_model_config(config)
    switches = check_switches(config)
    cfg = with_switches(cfg, switches, "config.switches.")
    mesh = sharding.make_mesh(config.mesh.to_dict())
    # No step is taken: what one asks of the run's mesh is not asked of this one.
    of_no_step = config.copy_and_resolve_references()
    of_no_step.update(gradients="auto", remat="full")
    program = make_program(of_no_step, cfg, switches, mesh, kept["steps"])
    check_bases(bases(config, program), kept["bases"])
    with jax.set_mesh(mesh):
        trainable = states.restore(step, {"params": program.state["params"]})["params"]
        _, frozen = create(config, program, fresh=False)
    text = (load_tokenizer(tokenizer), template)
    return Snapshot(cfg, program, trainable, frozen, *text, kept, step)


def write_result(directory: epath.Path, config: ConfigDict, run: Snapshot) -> None:
    """What a run has made: a model, or the adapter of one."""
    data = {key: run.identity[key] for key in ("sources", "group_rows", "slots")}
    this = {"config": fingerprint(config), "steps": run.step, "data": data}
    this["bases"] = run.identity["bases"]
    plan, lora = run.program.plan, run.program.lora
    about = (run.cfg, plan.trainable, config.data.length)
    provenance = trained(origin(config, plan), this, *about)
    if lora is None:
        about = (run.tokenizer, run.template, provenance)
        save_checkpoint(directory, Checkpoint(run.cfg, run.params, *about))
        return
    path = adapter_base(config, run.program)
    base = adapter_directory.Base(str(place(path)), run.identity["bases"][path])
    params = run.trainable
    if jax.process_count() > 1:
        params = process_allgather(params, tiled=True)
    about = (run.cfg, lora, base, run.template, provenance)
    first_process_does(lambda: adapter_directory.write(directory, params, *about))


def origin(config: ConfigDict, plan) -> dict:
    """The provenance of the checkpoint that `init` took the language model from, if any."""
    names = list(dict.fromkeys(map(base_name, plan.lr_mults)))
    sources = init_sources(names, config.init)
    path = next(path for name, path in sources.items() if name.startswith("llm/"))
    return describe(path)["provenance"] if path else {}
