"""Runs docs/finetune_lora.md with a trained demo -> docs/evidence/finetune_lora.json and the page.

`python -m tools.evidence.finetune_lora --demo workdir/demo --workdir DIR`: minutes on two cores.
Fails unless the adapter answers at least 20 points more of at least 200 held-out questions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "evidence" / "finetune_lora.json"
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LEAST = {"questions": 200, "points": 0.20}


def commands() -> list[str]:
    """The page's, in order."""
    text = (ROOT / "docs" / "finetune_lora.md").read_text()
    return [line for block in BLOCK.findall(text) for line in block.strip().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="the workdir of `mgm-jax demo`")
    parser.add_argument("--workdir", type=Path, required=True)
    args = parser.parse_args()
    (args.workdir / "workdir").mkdir(parents=True, exist_ok=True)
    for link, target in (("configs", ROOT / "configs"), ("workdir/demo", args.demo.absolute())):
        if not (args.workdir / link).exists():
            (args.workdir / link).symlink_to(target)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "JAX_PLATFORMS": "cpu"}
    found, seconds = {}, {}
    for command in commands():
        begin = time.monotonic()
        done = subprocess.run(
            command, shell=True, cwd=args.workdir, env=env, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"error: code {done.returncode} from: {command}")
        seconds[" ".join(command.split()[:3])] = round(time.monotonic() - begin, 1)
        if "lora compare" in command:
            found = json.loads(done.stdout.splitlines()[-1])
    before, after = found["accuracy"]
    if found["questions"] < LEAST["questions"] or after - before < LEAST["points"]:
        sys.exit(f"error: {found}, expected at least {LEAST}")
    OUT.write_text(json.dumps(found | {"seconds": seconds}, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
