"""Draw a training batch as an HTML page: what is in its rows, and what the model sees of it.

The batch is made exactly as training gets it: from the config, and from --workdir or --shards where
the config leaves the layout of a batch to the mesh. The page shows for each row its
examples, their tokens with what carries loss, and the pictures in both resolutions. It needs no
other file.
"""

from __future__ import annotations

import argparse

from mgm_jax.data.replay import PAGE_ROWS, add_run_arguments, rebuild, write_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--out", default="preview.html", metavar="FILE", help="the page; default: %(default)s"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=PAGE_ROWS,
        metavar="N",
        help="rows to draw; default: %(default)s",
    )
    parser.add_argument(
        "--step", type=int, default=0, metavar="S", help="of training; default: 0, the first"
    )


def main(args: argparse.Namespace) -> None:
    write_page(rebuild(args), args.out, args.rows)
