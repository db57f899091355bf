"""The commands of docs/evals.md and docs/evaluate.md, run as they stand there, and a table."""

import json
import re
import shlex
import shutil
from pathlib import Path

from mgm_jax import cli
from mgm_jax.evals import BENCHMARKS, get

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evals.md").read_text()


def test_commands(make_case, tmp_path, monkeypatch, capsys):
    names = ("textvqa", "pope", "mmmu", "mmbench", "jsonl")
    for name in names:
        make_case(name)
    monkeypatch.chdir(tmp_path)
    commands = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].strip().splitlines()
    assert [c.split()[3] for c in commands] == list(names)
    for command in commands:
        cli.main(shlex.split(command)[1:])
        json.loads(capsys.readouterr().out.splitlines()[-1])
    for file in ("scores.json", "verdicts.json", "sheet.xlsx"):
        assert (tmp_path / file).stat().st_size > 200
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    found = {}
    exec(code, found)
    assert found["scores"].result["accuracy"] == 0.65


def test_the_table_names_benchmarks_and_options():
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `\w+` \| .*\| .*\| .*\|", line)]
    assert [re.match(r"\| `(\w+)`", row)[1] for row in rows[:15]] == list(BENCHMARKS)
    for row in rows[:15]:
        name, options = re.match(r"\| `(\w+)`", row)[1], row.rsplit("|", 2)[1]
        assert set(get(name).options) <= set(re.findall(r"\w+", options)), name
    sentence = PAGE[PAGE.index("`--submission` exists for") : PAGE.index("## Your own questions")]
    named = set(re.findall(r"`(\w+)`", sentence)) & set(BENCHMARKS)
    assert named == {n for n in BENCHMARKS if get(n).submission}


def test_evaluating_a_checkpoint(checkpoint, own, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "ckpt").symlink_to(checkpoint)
    shutil.copytree(own.parent, tmp_path / "pictures")
    shutil.copy(own, tmp_path / "mine.jsonl")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "evaluate.md").read_text()
    commands = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].strip().splitlines()
    found = []
    for command in commands:
        cli.main(shlex.split(command)[1:])
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [f["answered"] for f in found[:2]] == [8, 16]
    assert found[1] == json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "out" / "report.html").exists()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], scope)
    config = scope["get_config"]()
    assert config.benchmarks.receipts.generation.max_new_tokens == 32
    keys = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) - {"benchmarks"}
    assert keys <= set(config)
