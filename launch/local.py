"""Trains in one process on this machine: `python -m launch.local [--devices 8] --config F ...`.

`--devices N` simulates N devices on the CPU, to try a mesh. Everything that is not named below goes
to the module: --config, --workdir, --config.KEY=VALUE.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from launch.commands import TRAIN, at_least, simulated


def main(argv: list[str] | None = None) -> None:
    """Becomes the training process, so that signals and exit code are its own."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--devices", type=at_least(1), metavar="N", help="simulate N devices on the CPU"
    )
    parser.add_argument("--module", default=TRAIN, help="what to run; default: %(default)s")
    args, rest = parser.parse_known_args(argv)
    env = simulated(os.environ, args.devices) if args.devices else dict(os.environ)
    command = [sys.executable, "-m", args.module, *rest]
    changed = {k: v for k, v in env.items() if os.environ.get(k) != v}
    shown = [f"{k}={shlex.quote(v)}" for k, v in changed.items()]
    print(" ".join([*shown, shlex.join(command)]), file=sys.stderr, flush=True)
    os.execve(sys.executable, command, env)


if __name__ == "__main__":
    main()
