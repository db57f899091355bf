"""Rebuild the batch of any training step and say what is in it.

The batch is made on one machine, exactly as training gets it: from the config, and from --workdir
or --shards where the config leaves the layout of a batch to the mesh. Prints a line for each
example, and as the last line JSON: counts, the place in the epoch, the records of each row (source
and number), and the sha256 of the batch's arrays.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from mgm_jax.data.files import write_whole
from mgm_jax.data.page import page
from mgm_jax.data.rows import Batch, Member, Segment, digest, read, totals
from mgm_jax.data.stream import Stream, check_identity, open_stream
from mgm_jax.settings import add_config_argument, fingerprint, read_config
from mgm_jax.training_state import TrainingState

PAGE_ROWS = 8
COLUMNS = ("row", "group", "segment", "source", "record", "tokens", "pictures", "loss", "where")


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """The batch of a step. `run` is what the config was read from, as it was typed."""

    run: str
    stream: Stream
    step: int
    batch: Batch
    members: list[list[Member]]


def rebuild(args: argparse.Namespace) -> Rebuilt:
    """What `args` (see `add_run_arguments`; step, rows) ask for.

    ValueError or OSError for a wrong argument or config, and for data that are not those that the
    run in --workdir began with.
    """
    for name, least in (("step", 0), ("rows", 1), ("shards", 1)):
        if (found := getattr(args, name)) is not None and found < least:
            raise ValueError(f"--{name} is {found}, expected at least {least}")
    config, kept, index = read_config(args.config, args.rest), None, None
    if args.workdir:
        state, index = (Path(args.workdir) / name for name in ("state", "index"))
        if not state.is_dir():
            raise FileNotFoundError(f"{state} is missing: no run has saved a state there")
        found = TrainingState(state, keep=1, fingerprint=fingerprint(config))
        with contextlib.closing(found) as states:
            _, kept = states.latest()
    stream = open_stream(config, shards=args.shards, kept=kept, index=index)
    if kept:
        check_identity(stream.identity, kept, state)
    batch, members = stream.batch(args.step), stream.members(args.step)
    return Rebuilt(" ".join([args.config, *args.rest]), stream, args.step, batch, members)


def write_page(rebuilt: Rebuilt, file: str, rows: int) -> None:
    """Writes the page of the first `rows` rows and says so."""
    stream, batch = rebuilt.stream, rebuilt.batch
    epoch, share = stream.epoch(rebuilt.step)
    text = page(
        batch,
        rebuilt.members,
        stream.tokenizer,
        stream.cfg,
        heading=f"Batch of step {rebuilt.step}",
        detail=f"{rebuilt.run}, {share:.2%} into epoch {epoch}",
        rows=rows,
    ).encode()
    write_whole(file, text)
    total = len(rebuilt.members)
    print(f"{file}: {min(rows, total)} of {total} rows, {len(text) / 1e6:.2f} MB")


def table(rows: Iterable[list[Segment]]) -> Iterable[str]:
    """A line for each example, a column of COLUMNS each; one for an empty row."""
    form = "{:>4} {:>5} {:>7}  {:<16} {:>9} {:>6} {:>8} {:>6}  {}".format
    yield form(*COLUMNS)
    for r, row in enumerate(rows):
        if not row:
            yield f"{r:>4} {'':>5} {'':>7}  empty"
        for s in row:
            source, record, where = s.member
            slots, loss = len(s.slots), s.loss_tokens
            yield form(s.row, s.group, s.number, source, record, len(s), slots, loss, where)


def result(rebuilt: Rebuilt) -> dict:
    """The last line as an object."""
    epoch, share = rebuilt.stream.epoch(rebuilt.step)
    return {
        "command": "data replay",
        "step": rebuilt.step,
        "epoch": epoch,
        "epoch_share": share,
        **totals(rebuilt.batch),
        "sha256": digest(rebuilt.batch),
        "members": [[list(member[:2]) for member in row] for row in rebuilt.members],
    }


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which run's batches are meant."""
    add_config_argument(parser)
    parser.add_argument(
        "--workdir", metavar="DIR", help="of the run, which has settled the layout of its batches"
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=1,
        metavar="N",
        help="without --workdir and config.data.group_rows: parts that the run's mesh splits a "
        "batch into; default: %(default)s",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--step", type=int, required=True, metavar="S", help="the first is 0")
    parser.add_argument("--html", metavar="FILE", help="write the batch as a page, as `preview`")
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help=f"rows to print and to draw; default: all are printed, {PAGE_ROWS} drawn",
    )


def main(args: argparse.Namespace) -> None:
    rebuilt = rebuild(args)
    rows = read(rebuilt.batch, rebuilt.members, rebuilt.stream.cfg.visual_tokens)
    print("\n".join(table(rows[: args.rows])))
    if args.rows is not None and args.rows < len(rows):
        print(f"... {len(rows) - args.rows} more rows")
    if args.html:
        write_page(rebuilt, args.html, args.rows or PAGE_ROWS)
    line = json.dumps(result(rebuilt))
    if args.json:
        write_whole(args.json, f"{line}\n".encode())
    print(line)
