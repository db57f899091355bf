"""`mgm-jax chat` on a tiny checkpoint over a pseudo-terminal, as a person uses it."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from mgm_jax.imagegen import read_settings

pexpect = pytest.importorskip("pexpect", reason="pexpect types into the pseudo-terminal")


@pytest.fixture
def child(tiny_demo, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    command = ["-m", "mgm_jax.cli", "chat", str(tiny_demo / "base_mining")]
    command += ["--gen-backend=placeholder", "--gen-dir=made", "--max-length=2300"]
    child = pexpect.spawn(
        sys.executable,
        [*command, "--max-new-tokens=8"],
        env=os.environ | {"TERM": "dumb", "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        encoding="utf-8",
        codec_errors="replace",
        dimensions=(24, 500),  # no line wraps
        timeout=300,
    )
    yield child
    child.close(force=True)


def test_a_conversation(child, tmp_path):
    def say(line, *expected):
        """Types a line; what is printed up to the next prompt."""
        child.sendline(line)
        child.expect_exact(line)
        for text in expected:
            child.expect_exact(text)
        child.expect_exact("\r\n> ")
        return child.before

    child.expect_exact("/help lists the commands.")
    child.expect_exact("> ")
    say("/image a.png", "looking at a.png", "40 x 30 (with the next question)")
    assert say("What is this?").strip()
    say("/dance", "error: unknown command /dance")
    say("/image none.png", "error: picture none.png: the file is missing")

    say("/max_new_tokens 2000", "max_new_tokens: 2000")
    child.sendline("And now?")
    child.expect_exact("And now?\r\n")
    child.expect(r"\S")  # the answer comes while it is made ...
    child.sendintr()  # ... and is stopped
    child.expect_exact("(stopped)")
    child.expect_exact("> ")

    say("/max_new_tokens 8")
    say("/width 64")
    say("/height 64")
    say("/gen a red cat", "prompt: a red cat", "picture: made/", "width 64, height 64")
    (path,) = (tmp_path / "made").glob("*.png")
    assert read_settings(path)["prompt"] == "a red cat" and Image.open(path).size == (64, 64)
    assert say("And then?").strip()
    say("/save talk", "saved talk.json")
    saved = Path(tmp_path / "talk.txt").read_text("utf-8")
    for text in ("user: <image>\nWhat is this?", "user: And now?", "user: And then?"):
        assert text in saved
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
