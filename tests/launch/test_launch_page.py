"""The commands of docs/launch.md, as they stand there: those that can be run anywhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "launch.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.strip().splitlines()
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c.split()[2:4]))
def test_a_command_of_the_page(command, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command.replace("workdir/run1", str(tmp_path)),
        shell=True,
        cwd=ROOT,
        env=os.environ | {"PATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert ("dry run" in done.stderr) != ("preflight --workdir" in command or "watchdog" in command)
