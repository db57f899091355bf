"""The finished demo, run by `make demo` before these tests; without one they skip."""

import json
import os
import sys
from pathlib import Path

import pytest

WORKDIR = Path(os.environ.get("DEMO_WORKDIR", "workdir/demo"))


@pytest.fixture(scope="module")
def phases():
    file = WORKDIR / "phases.json"
    if not file.exists() or "page" not in (found := json.loads(file.read_text())):
        pytest.skip(f"{file}: no finished demo; `make demo` makes it")
    return found


def test_the_claim_holds(phases):
    mining, lr_only = phases["mining_answers"], phases["lr_only_answers"]
    ceiling = phases["ceiling"]["accuracy"]
    assert mining["test_digit"] >= 0.85
    assert mining["test_colour"] >= 0.95
    assert mining["new_photos_digit"] >= 0.70
    assert ceiling <= 0.50
    assert lr_only["test_digit"] >= ceiling - 0.10
    assert mining["test_digit"] >= lr_only["test_digit"] + 0.30


def test_answers_were_compared_exactly(phases):
    rows = json.loads((WORKDIR / "answers_mining.json").read_text())
    asked = [r for r in rows if (r["split"], r["kind"]) == ("test", "digit")]
    assert len(asked) >= 500
    right = sum(r["found"] == r["answer"] for r in asked) / len(asked)
    assert right == pytest.approx(phases["mining_answers"]["test_digit"], abs=1e-4)


def right_answers():
    rows = json.loads((WORKDIR / "answers_mining.json").read_text())
    return [r for r in rows if r["found"] == r["answer"]]


def test_one_can_talk_with_it(phases, capsys):
    from mgm_jax import cli

    row = right_answers()[0]
    image = str(WORKDIR / "data" / row["image"])
    cli.main(["chat", str(WORKDIR), "--image", image, "--question", row["question"]])
    assert capsys.readouterr().out.strip() == row["answer"]


def test_one_can_talk_with_it_over_a_pseudo_terminal(phases):
    pexpect = pytest.importorskip("pexpect", reason="pexpect types into the pseudo-terminal")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "mgm_jax.cli", "chat", str(WORKDIR)],
        env=os.environ | {"TERM": "dumb", "JAX_PLATFORMS": "cpu"},
        encoding="utf-8",
        dimensions=(24, 500),  # no line wraps
        timeout=300,
    )
    child.expect_exact("> ")
    for row in {r["kind"]: r for r in right_answers()}.values():
        lines = (f"/image {(WORKDIR / 'data' / row['image']).resolve()}", row["question"], "/clear")
        for line in lines:
            child.sendline(line)
            child.expect_exact(f"{line}\r\n")
            child.expect_exact("> ")
            if line == row["question"]:
                assert child.before.strip() == row["answer"]
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_the_page_shows_pictures_and_answers(phases):
    page = (WORKDIR / "report" / "index.html").read_text()
    assert "what was mined" in page and page.count("<img") >= 2
    assert (WORKDIR / "report" / "mined.png").stat().st_size > 10_000
