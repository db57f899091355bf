"""What is found out about hosts before a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

from launch import preflight
from launch.preflight import compare, holders, tpu, workdir

ROOT = Path(__file__).parents[2]


def look(run_command, *options, launcher=()):
    done = run_command(
        [sys.executable, "-m", *(launcher or ("launch.preflight",)), "--free-gib=0", *options],
        cwd=ROOT,
        timeout=200,
    )
    lines = done.stdout.splitlines() or [""]
    return done, json.loads(lines[-1]) if lines[-1].startswith("{") else None


def test_this_machine_is_ready(run_command, tiny_config_file, tmp_path):
    config = f"--config={tiny_config_file}"
    done, found = look(run_command, f"--workdir={tmp_path}", config, "--devices=1")
    assert done.returncode == 0 and found["ok"] and not found["failed"], done.stdout + done.stderr
    (host,) = found["hosts"]
    names = [c["name"] for c in host["checks"]]
    assert names == ["tpu is free", "versions", "code", "devices", "workdir", "disk", "disk",
                     "config", "mesh"]  # fmt: skip
    assert "jax 0." in done.stdout and list(tmp_path.iterdir()) == []


def test_each_thing_that_is_wrong_has_its_row(run_command, tiny_config_file, tmp_path):
    (tmp_path / "file").write_text("")
    done, found = look(
        run_command,
        *(f"--workdir={tmp_path / 'file'}", f"--config={tiny_config_file}"),
        *("--config.mesh.fsdp=3", "--accelerator=v5litepod-16", "--free-gib=1000000000"),
    )
    assert done.returncode == 1 and not found["ok"]
    failed = [name.split(": ")[1] for name in found["failed"]]
    assert failed == ["devices", "workdir", "disk", "disk", "mesh"]
    assert "1 x cpu in 1 processes, expected 16 x TPU v5 lite" in done.stdout
    assert "a file cannot be written" in done.stdout and "does not fit 1 devices" in done.stdout


def test_a_config_with_a_mistake(run_command, tiny_config_file, tmp_path):
    config = (f"--config={tiny_config_file}", "--config.mehs.fsdp=3")
    done, found = look(run_command, f"--workdir={tmp_path}", *config)
    assert done.returncode == 1 and [f.split(": ")[1] for f in found["failed"]] == ["config"]
    done, _ = look(run_command, f"--workdir={tmp_path}", "--mehs")
    assert done.returncode == 2 and "unknown argument '--mehs'" in done.stderr


def test_hosts_are_compared(tmp_path):
    command = [sys.executable, "-m", "launch.local_multiprocess", "--module=launch.preflight"]
    options = ["--processes=2", "--devices=2", f"--workdir={tmp_path}", "--free-gib=0"]
    done = subprocess.run(
        [*command, *options, "--devices=2"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "versions agree  the same on all 2 hosts" in done.stderr
    assert "4 x cpu in 2 processes" in done.stderr


def report(host, same, clock=0.0):
    row = {"name": "versions", "ok": True, "found": same, "same": same}
    return {"host": host, "checks": [row], "time": clock}


def test_hosts_that_differ_are_named():
    reports = [report("a", "jax 1"), report("b", "jax 2"), report("c", "jax 1", clock=9.0)]
    versions, clocks = compare(reports)
    assert not versions.ok and versions.found == "a, c: jax 1; b: jax 2"
    assert not clocks.ok and clocks.found == "9.0 s apart"


def test_who_holds_the_tpu_is_named(tmp_path, monkeypatch):
    proc = tmp_path / "proc"
    for number, target in ((7, "/dev/vfio/0"), (8, "/dev/null"), (os.getpid(), "/dev/accel0")):
        (proc / str(number) / "fd").mkdir(parents=True)
        (proc / str(number) / "fd" / "3").symlink_to(target)
        (proc / str(number) / "comm").write_text("python\n")
    assert holders(str(proc)) == {7: "python"}
    assert tpu().found == "no TPU here"
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(preflight, "DEVICE_FILES", (str(tmp_path / "accel"),))
    monkeypatch.setattr(preflight, "holders", lambda: {7: "python"})
    assert not tpu().ok and tpu().found == "held by process 7 (python); stop it"


def test_a_workdir_that_cannot_be_deleted_from(tmp_path, monkeypatch):
    def refuse(self, missing_ok=False):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(type(preflight.epath.Path(tmp_path)), "unlink", refuse)
    found = workdir(str(tmp_path))
    assert not found.ok and "a file cannot be deleted" in found.found
