"""Measurements on a board: TensorBoard, Weights & Biases. JSON lines are always written besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etils import epath

from mgm_jax.settings import BOARDS, TrainingError

Board = tuple[Callable[[int, dict], None], Callable[[], None]]  # write(step, values), close()


def tensorboard(workdir: epath.Path, config: dict, start: int) -> Board:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(step, values):
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def wandb(workdir: epath.Path, config: dict, start: int) -> Board:
    import wandb

    # One run of the board for a working directory, so that a resumed run goes on in it.
    name = workdir.name or "run"
    run = wandb.init(project="mgm_jax", name=name, id=name, resume="allow", config=config)
    return (lambda step, values: run.log(values, step=step)), run.finish


OPEN = {"tensorboard": tensorboard, "wandb": wandb}


def open_boards(names: Sequence[str], workdir: epath.Path, config: dict, start: int) -> list[Board]:
    """The boards of `config.boards`; rows after step `start` will be written again. TrainingError
    where the package of one is not installed."""
    found = []
    for name in names:
        try:
            found.append(OPEN[name](workdir, config, start))
        except ImportError as error:
            raise TrainingError(
                f"config.boards has {name!r}, which needs {BOARDS[name]}: "
                f"pip install 'mgm-jax[{name}]'"
            ) from error
    return found
