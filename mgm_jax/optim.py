"""AdamW or Adafactor by regex lists: what trains, on which schedule, at which multiple of the rate.

`schedule`, `lr_mults`, `wd_mults` are lists of (regex, value); the first rule that matches a whole
parameter name wins. A schedule of None freezes: no gradient, no optimizer state. A rule may take
some layers of a stack, `("clip/layers[12:]/.*", schedule)`: see `tree.match_layers`. Weight decay
follows PyTorch's AdamW (it is multiplied by the learning rate), unlike big_vision's.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from mgm_jax.lora.config import NAMES as ADAPTERS
from mgm_jax.tree import flatten, match_layers, take, unflatten

Schedule = Callable[[jax.Array], jax.Array]


def make_schedule(spec: Mapping, total_steps: int) -> Schedule:
    """step -> factor of the learning rate, counting steps from 0 (MGM_SPEC 6.1).

    `decay`: "cosine" (to 0 at `total_steps`) or "constant"; `warmup`: the fraction (below 1) or
    the number of steps of linear warm-up; the first step then has factor 0, as in the original.
    """
    spec = dict(spec)
    decay, warmup = spec.pop("decay", None), spec.pop("warmup", 0)
    if spec:
        raise ValueError(f"schedule: unknown key {sorted(spec)[0]!r}, expected decay, warmup")
    if decay not in ("cosine", "constant"):
        raise ValueError(f"schedule.decay is {decay!r}, expected 'cosine' or 'constant'")
    if not 0 <= warmup < total_steps:
        raise ValueError(f"schedule.warmup is {warmup}, expected at least 0, below {total_steps}")
    steps = math.ceil(total_steps * warmup) if warmup < 1 else int(warmup)

    def factor(step):
        step = jnp.asarray(step, jnp.float32)
        rest = 1.0
        if decay == "cosine":
            # (1 + cos) / 2 with the error relative to the rate also where it is small.
            rest = jnp.sin(jnp.pi / 2 * (total_steps - step) / max(1, total_steps - steps)) ** 2
        return jnp.where(step < steps, step / max(1, steps), rest)

    return factor


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to each parameter, by name; a stack whose layers differ is several pieces
    (`tree.take`), each of them with rows of its own."""

    trainable: dict[str, Schedule]  # name -> schedule; a name that is absent is frozen
    lr_mults: dict[str, float]
    wd_mults: dict[str, float]
    report: tuple[str, ...]  # one line a parameter or piece

    @property
    def modules(self) -> set[str]:
        """Modules of the model (llm, clip, ...) of which something trains."""
        return {name.split("/")[0] for name in self.trainable}

    @property
    def whole(self) -> set[str]:
        """Modules of which more than adapters trains."""
        own = (n for n in self.trainable if not re.fullmatch(ADAPTERS, n))
        return {name.split("/")[0] for name in own}

    def split(self, params):
        """A parameter tree -> (trainable tree, frozen tree); `tree.merge` is the way back."""
        flat = flatten(params)
        return tuple(
            unflatten({n: take(flat, n) for n in self.lr_mults if (n in self.trainable) == wanted})
            for wanted in (True, False)
        )


def make_plan(cfg, names, total_steps: int, stacks: Mapping[str, int] | None = None) -> Plan:
    """Reads `cfg.schedule`, `cfg.lr_mults`, `cfg.wd_mults`.

    `stacks`: name -> number of layers, of those that are stacks (`sharding.stacks`). ValueError for
    names that no schedule covers, and for rules that fit nothing.
    """
    names, stacks = list(names), stacks or {}
    schedules = match_layers(names, stacks, cfg.schedule, "schedule")
    lr_mults = match_layers(names, stacks, cfg.lr_mults, "lr_mults", default=1.0)
    wd_mults = match_layers(names, stacks, cfg.wd_mults, "wd_mults", default=0.0)
    trainable, lrs, wds, report = {}, {}, {}, []
    for name in names:
        rows = list(zip(schedules[name], lr_mults[name], wd_mults[name], strict=True))
        for piece, (spec, lr, wd) in _pieces(name, rows):
            lrs[piece], wds[piece] = lr, wd
            report.append(f"{piece}: frozen")
            if spec is not None:
                trainable[piece] = make_schedule(spec, total_steps)
                report[-1] = f"{piece}: lr {cfg.lr * lr:g} {dict(spec)}, wd {cfg.wd * wd:g}"
    if not trainable:
        raise ValueError("schedule: every parameter is frozen, nothing to train")
    return Plan(trainable, lrs, wds, tuple(report))


def _pieces(name: str, rows: list):
    """Neighbouring layers with the same rules -> (name of the piece, rules)."""
    keys = [r if r[0] is not None else None for r in rows]  # frozen is frozen, at whatever rate
    starts = [i for i in range(len(rows)) if i == 0 or keys[i] != keys[i - 1]]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield (f"{name}[{start}:{stop}]" if len(starts) > 1 else name), rows[start]


def _adamw(cfg) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, mu_dtype=cfg.mu_dtype)


def _adafactor(cfg) -> optax.GradientTransformation:
    """Second moments of matrices as a row and a column, and updates of at most 1 in the root mean
    square (arXiv 1804.04235)."""
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


OPTIMIZERS = {"adamw": _adamw, "adafactor": _adafactor}
MOMENT_DTYPES = ("float32", "bfloat16")


def make_optimizer(cfg, plan: Plan) -> optax.GradientTransformation:
    """An update of the trainable tree. `cfg`: name (`OPTIMIZERS`), lr, wd, clip (global norm, or
    None), and for AdamW b1, b2, eps, mu_dtype (of the first moment). ValueError for others."""
    if cfg.name not in OPTIMIZERS:
        raise ValueError(f"optim.name is {cfg.name!r}, expected one of {list(OPTIMIZERS)}")
    if cfg.mu_dtype not in MOMENT_DTYPES:
        raise ValueError(f"optim.mu_dtype is {cfg.mu_dtype!r}, expected one of {MOMENT_DTYPES}")
    clip = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    return optax.chain(*clip, OPTIMIZERS[cfg.name](cfg), _decay_and_scale(cfg.lr, cfg.wd, plan))


def steps_done(opt_state) -> jax.Array:
    """The number of updates that made this state of `make_optimizer`."""
    return opt_state[-1].count


def _decay_and_scale(lr: float, wd: float, plan: Plan) -> optax.GradientTransformation:
    """update -> -lr * mult * schedule(step) * (update + wd * mult * parameter)."""

    def update(updates, state, params):
        flat_params = flatten(params)
        out = {}
        for name, u in flatten(updates).items():
            rate = lr * plan.lr_mults[name] * plan.trainable[name](state.count)
            if decay := wd * plan.wd_mults[name]:
                u = u + decay * flat_params[name]
            out[name] = (-rate * u).astype(flat_params[name].dtype)
        return unflatten(out), optax.ScaleByScheduleState(state.count + 1)

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformation(init, update)
