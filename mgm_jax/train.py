"""Training: `python -m mgm_jax.train --config configs/X.py[:arg] --workdir DIR [--config.a.b=v]`.

A run is (config, workdir). Rerunning the same command resumes from the newest state in
`workdir/state`; the finished model is written to `workdir/model`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mgm_jax import optim, sharding
from mgm_jax.checkpoint import (
    Checkpoint,
    CheckpointError,
    TrainingState,
    check_params,
    describe,
    hush_stragglers,
    load_checkpoint,
    save_checkpoint,
)
from mgm_jax.convert.overrides import with_switches
from mgm_jax.data.pipeline import Encoder, Pictures, batches, make_dataset
from mgm_jax.data.sources import LlavaJson
from mgm_jax.features import TOWERS, cache_features
from mgm_jax.host_memory import keep_freed_memory
from mgm_jax.metrics import Metrics
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.provenance import trained
from mgm_jax.settings import (
    TrainingError,
    check_numbers,
    check_switches,
    config_error,
    fingerprint,
    read_model_config,
)
from mgm_jax.step import make_step
from mgm_jax.switches import choose
from mgm_jax.text import load_tokenizer
from mgm_jax.tree import base_name, flatten, match_first, merge, unflatten

# ---------------------------------------------------------------------------------------- model


def abstract_model(cfg: MgmConfig, **options):
    """The module, its parameters' shapes and their logical axes."""
    model = Mgm(cfg, **options)
    n, size = cfg.visual_tokens, cfg.image.hr_size
    row = jnp.zeros((1, n + 1), jnp.int32)
    batch = {
        "tokens": row,
        "positions": row,
        "segments": row,
        "visual_index": row,
        "images": jnp.zeros((1, 1, size, size, 3), jnp.uint8),
    }
    shapes, axes = sharding.abstract_params(model, (batch,))
    return model, batch, shapes, axes


def init_params(model: Mgm, batch, shapes, shardings, rules, seed: int):
    """Each parameter from the checkpoint that its first matching rule names, or at random.

    `rules`: (regex, model directory or None). Everything arrives in its sharding.
    """
    flat_shapes, flat_shardings = flatten(shapes), flatten(shardings)
    sources = match_first(flat_shapes, rules, "init")
    params = {}
    if random := [n for n, path in sources.items() if path is None]:

        @functools.partial(jax.jit, out_shardings={n: flat_shardings[n] for n in random})
        def create(key):
            import flax.linen as nn

            flat = flatten(nn.unbox(model.init(key, batch)["params"]))
            return {n: flat[n] for n in random}

        params |= create(jax.random.key(seed))
    for path in {p for p in sources.values() if p is not None}:
        wanted = {n: flat_shapes[n] for n, p in sources.items() if p == path}
        found = flatten(load_checkpoint(path).params)
        found = {n: found[n] for n in wanted if n in found}
        check_params(unflatten(found), unflatten(wanted), path)
        params |= {n: jax.device_put(found[n], flat_shardings[n]) for n in wanted}
    return unflatten({n: params[n] for n in flat_shapes})


# ------------------------------------------------------------------------------------------ run


@dataclasses.dataclass
class Run:
    """Everything that a training loop needs, made from a config; nothing has been compiled yet."""

    config: ConfigDict
    cfg: MgmConfig
    mesh: jax.sharding.Mesh
    model: Mgm
    tokenizer: object
    plan: optim.Plan
    state: dict
    frozen: dict
    dataset: object
    step: object  # jitted

    def batches(self, start: int) -> Iterator[dict]:
        """Batches on the mesh, from step `start` on."""
        placed = sharding.batch_sharding(self.mesh)
        for batch in batches(self.dataset, start, threads=self.config.data.threads):
            yield jax.device_put(batch, placed)

    def params(self):
        return merge(self.state["params"], self.frozen)


def prepare(config: ConfigDict) -> Run:
    """Checks the whole configuration, reads the data, and places parameters on the mesh."""
    check_numbers(config)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    mesh = sharding.make_mesh(config.mesh.to_dict())
    sharding.check_batch(config.data.batch, mesh)
    switches = check_switches(config)
    cfg, tokenizer_dir = read_model_config(config)
    cfg = with_switches(cfg, switches, "config.switches.")
    tokenizer = load_tokenizer(tokenizer_dir)
    if tokenizer.vocab_size > cfg.llm.vocab_size:
        raise TrainingError(
            f"{tokenizer_dir} has {tokenizer.vocab_size} pieces, more than the model's "
            f"llm.vocab_size {cfg.llm.vocab_size}"
        )
    options = {"dtype": config.dtype, "remat": config.remat, "scan": config.scan}
    options["drop_path"] = switches["frozen_tower_drop_path"]
    model, batch, shapes, axes = abstract_model(cfg, **options)
    stacks = sharding.stacks(shapes, axes)
    plan = optim.make_plan(config.optim, flatten(shapes), config.steps, stacks)
    source = LlavaJson(config.data.json, config.data.images)
    text = {name: switches[name] for name in choose("text")}
    encoder = Encoder(config.data.template, tokenizer, cfg.visual_tokens, config.data.length, text)

    shardings = sharding.param_shardings(shapes, axes, mesh)
    params = init_params(model, batch, shapes, shardings, config.init, config.seed)
    # Layers are never sharded, so a piece of a stack takes the sharding of the whole.
    placed = {n: flatten(shardings)[base_name(n)] for n in plan.lr_mults}
    trainable, frozen = (
        unflatten({n: jax.device_put(p, placed[n]) for n, p in flatten(part).items()})
        for part in plan.split(params)
    )
    frozen = jax.tree.map(lambda p: p.astype(config.frozen_dtype), frozen)
    del params
    optimizer = optim.make_optimizer(config.optim, plan)
    opt_shapes = jax.eval_shape(optimizer.init, trainable)
    opt_shardings = sharding.opt_shardings(opt_shapes, flatten(trainable), placed, mesh)
    opt = jax.jit(optimizer.init, out_shardings=opt_shardings)(trainable)

    pictures = Pictures(cfg.image)
    if config.data.cache_features:
        if moving := [n for n in plan.trainable if n.split("/")[0] in TOWERS]:
            raise TrainingError(
                f"config.data.cache_features needs frozen towers, but {moving[0]} is trained"
            )
        if model.drop_path:
            raise TrainingError(
                "config.data.cache_features needs towers that give the same each time, but "
                f"config.switches.frozen_tower_drop_path is {model.drop_path}"
            )
        paths = [path for record in source for path in record.images]
        pictures = cache_features(config.data.cache_features, model, frozen, paths)
    dataset = make_dataset(
        source,
        encoder,
        pictures,
        batch=config.data.batch,
        groups=sharding.batch_shards(mesh),
        seed=config.seed,
    )
    state = {"params": trainable, "opt": opt}
    by_microbatch = switches["loss_reduction"] == "microbatch"
    state_shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        make_step(
            model,
            optimizer,
            seed=config.seed,
            microbatch=config.data.microbatch if by_microbatch else None,
            nan_on_empty=switches["nan_loss_on_empty"],
        ),
        donate_argnums=0,
        out_shardings=(state_shardings, sharding.replicated(mesh)),
    )
    return Run(config, cfg, mesh, model, tokenizer, plan, state, frozen, dataset, step)


def train(config: ConfigDict, workdir: str | Path, *, name: str = "train") -> Path:
    """Trains to `config.steps`, resuming if `workdir` has a state; returns the model's directory.

    Raises TrainingError, CheckpointError, or the data's errors, before any compile where possible.
    """
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CheckpointError(f"{workdir}: cannot write there ({e.strerror})") from e
    states = TrainingState(
        workdir / "state", keep=config.checkpoint.keep, fingerprint=fingerprint(config)
    )
    start = states.latest()
    run = prepare(config)
    with jax.set_mesh(run.mesh):
        if start:
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.state
            )
            run.state = states.restore(start, abstract)
            print(f"{name}: resumed at step {start}", file=sys.stderr)
        else:
            print("\n".join(run.plan.report), file=sys.stderr)
        _loop(run, states, workdir, start, name)
    states.close()
    this = {"config": fingerprint(config), "steps": config.steps}
    names, length = run.plan.trainable, config.data.length
    provenance = trained(origin(config, run.plan), this, run.cfg, names, length)
    parts = (run.cfg, run.params(), run.tokenizer, config.data.template, provenance)
    save_checkpoint(workdir / "model", Checkpoint(*parts))
    return workdir / "model"


def origin(config: ConfigDict, plan: optim.Plan) -> dict:
    """The provenance of the checkpoint that `init` took the language model from, if any."""
    names = list(dict.fromkeys(map(base_name, plan.lr_mults)))
    sources = match_first(names, config.init, "init")
    path = next(path for name, path in sources.items() if name.startswith("llm/"))
    return describe(path)["provenance"] if path else {}


def _loop(run: Run, states: TrainingState, workdir: Path, start: int, name: str) -> None:
    config = run.config
    metrics = Metrics(workdir / "metrics.jsonl", start=start, total=config.steps, name=name)
    data = run.batches(start)
    try:
        for step in range(start + 1, config.steps + 1):
            run.state, values = run.step(run.state, run.frozen, next(data))
            metrics.advance()
            last = step == config.steps
            log, save = (step % n == 0 or last for n in (config.log_every, config.checkpoint.every))
            if log or save:
                values = {k: float(v) for k, v in values.items()}
            if log:
                metrics.write(step, values)
            if (log or save) and not np.isfinite([values["loss"], values["grad_norm"]]).all():
                raise TrainingError(
                    f"loss is {values['loss']}, grad_norm {values['grad_norm']} at step {step}; "
                    f"the newest state in {states.directory} is of step {states.latest()}"
                )
            if save:
                states.save(step, run.state)
    finally:
        metrics.close()


# ---------------------------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> None:
    """`--config FILE[:arg] --workdir DIR [--config.key=value]`; an error is one line, exit 1."""
    from absl import flags
    from ml_collections import config_flags

    hush_stragglers()
    argv = ["mgm_jax.train", *(sys.argv[1:] if argv is None else argv)]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        "A file of configs/, with an argument after a colon.",
        flag_values=values,
        sys_argv=argv,
    )
    workdir = flags.DEFINE_string("workdir", None, "Where state and model go.", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], flag_values=values)
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}\nconfigs/common.py lists the keys of a config.")
        return
    expected = (flags.Error, AttributeError, KeyError, ValueError, OSError)
    try:
        values(argv)
        run = config.value
        run.steps  # noqa: B018  a file that could not be read only now says so
    except expected as e:
        raise SystemExit(f"error: {config_error(e)}") from e
    try:
        train(run, workdir.value)
    except expected as e:
        raise SystemExit(f"error: {e}") from e


if __name__ == "__main__":
    main()
