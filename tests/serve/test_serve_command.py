"""`mgm-jax serve` as a process: it starts, answers, and ends in order."""

import re
import signal
import subprocess
import sys

import httpx
import pytest

from mgm_jax import cli, save
from mgm_jax.serve.cli import parse_mesh
from tests.serve.conftest import wait_until

SMALL = ["--slots=2", "--max-length=96", "--bucket=96", "--dtype=float32", "--max-tokens=40"]


@pytest.fixture
def process(tiny_model, tmp_path):
    """A running server and its URL; stderr goes to a file."""
    save(tiny_model, tmp_path / "model")
    command = [sys.executable, "-m", "mgm_jax.cli", "serve", str(tmp_path / "model"), "--port=0"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command + SMALL, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert "serving" in line, (tmp_path / "log").read_text()
        yield process, re.search(r"http://\S+", line)[0]
    finally:
        process.kill()
        process.wait()


def test_it_ends_in_order(process, tmp_path):
    """SIGTERM lets the answer under way end, and the exit code is 0."""
    process, url = process

    def health():
        try:
            return httpx.get(f"{url.removesuffix('/v1')}/health").status_code
        except httpx.TransportError:  # not listening yet
            return None

    wait_until(lambda: health() == 200, 300)
    body = {"model": "mgm", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=120) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(120) == 0
    log = (tmp_path / "log").read_text()
    assert re.search(r"compiling 0/\d+: decode", log) and "ready" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--mesh=fsdp"], "AXIS=N"),
        (["--gen-option=a=b"], "--gen-backend"),
        (["--gen-backend=paint"], "unknown image back end"),
        (["--max-tokens=0"], "tokens is 0"),
        (["--ocr-tokens=-1"], "--ocr-tokens is -1"),
        (["--bucket=64", "--bucket=4096"], "--bucket is 4096, expected 1 to --max-length 2048"),
        ([], "nowhere"),
    ],
)
def test_options_that_do_not_fit(options, named):
    with pytest.raises(SystemExit) as error:
        cli.main(["serve", "/nowhere", *options])
    assert named in str(error.value)


def test_mesh_sizes():
    assert parse_mesh("fsdp=4,tensor=2") == {"fsdp": 4, "tensor": 2}
