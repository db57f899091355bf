"""The commands on the pages about the chat: they parse, and none is missing."""

import re
import shlex
from pathlib import Path

from mgm_jax.cli import build_parser
from mgm_jax.generate.commands import COMMANDS, SETTINGS
from mgm_jax.imagegen import BACKENDS, make_backend

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def commands(page):
    lines = "\n".join(BLOCK.findall((DOCS / page).read_text())).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("mgm-jax")]


def test_the_commands_are_commands():
    found = [*commands("chat.md"), *commands("image_generation.md")]
    assert len(found) == 8
    for command in found:
        args = build_parser().parse_args(command)
        make_backend(args.gen_backend, args.gen_option)


def test_nothing_is_missing():
    chat, painting = ((DOCS / page).read_text() for page in ("chat.md", "image_generation.md"))
    named = set(re.findall(r"`(/\w+)", chat))
    assert named == {*COMMANDS, *(f"/{name}" for name in SETTINGS)}
    assert all(f"| `{name}`" in painting for name in BACKENDS)
