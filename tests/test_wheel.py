"""The built wheel: what is in it, and the demo from it in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("mgm_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def run(*command, **kwargs):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")  # a copy: a build leaves files behind
    for name in SOURCES:
        path = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name, **({"ignore": ignored} if path.is_dir() else {}))
    run("-m", "build", "--wheel", "--no-isolation", str(source))
    (file,) = (source / "dist").glob("*.whl")
    return file


def test_it_holds_the_package_and_the_configs_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"mgm_jax"}
    kinds = (".py", ".css", ".html", ".js")
    files = (ROOT / "mgm_jax").rglob("*")
    here = {str(p.relative_to(ROOT)) for p in files if p.suffix in kinds}
    here |= {f"mgm_jax/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.py")}
    assert {n for n in names if n.endswith(kinds)} == here


@pytest.mark.slow  # make evidence; CI runs the demo from the checkout
def test_the_smoke_demo_runs_from_it_in_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    empty.mkdir()
    command = ("-m", "mgm_jax.cli", "demo", "--size", "smoke", "--json", "result.json")
    done = run(*command, cwd=empty, env=os.environ | {"PYTHONPATH": str(site)})
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == json.loads((empty / "result.json").read_text())
    assert set(summary) == {
        "digit_accuracy",
        "digit_accuracy_lr_only",
        "lr_ceiling",
        "colour_accuracy",
        "digit_accuracy_new_photos",
        "questions",
        "seconds",
    }
    assert {p.name for p in empty.iterdir()} == {"workdir", "result.json"}
    assert (empty / "workdir" / "demo" / "report" / "index.html").exists()
    # Run again, it has nothing left to do and says the same.
    again = run(*command, cwd=empty, env=os.environ | {"PYTHONPATH": str(site)})
    assert json.loads(again.stdout.splitlines()[-1]) == summary
