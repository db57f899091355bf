"""The command, end to end with the TPU compiler; skipped where libtpu is not installed."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from mgm_jax.configs import variants

from mgm_jax.plan import search
from mgm_jax.plan.compile import PlanError, _busy, _reason, _used
from mgm_jax.plan.job import Job, Serve, Vision, batch_shape, plan_of, training
from mgm_jax.plan.vision import MODULES
from mgm_jax.settings import TrainingError
from mgm_jax.sharding import make_mesh
from mgm_jax.topologies import topology
from tests.conftest import TINY

CONFIGS = Path(variants.__file__).parent
KEYS = {
    *("fits", "hbm_peak_gib", "hbm_limit_gib", "hbm_by_kind", "model_tflop_per_chip"),
    *("step_seconds_estimate", "mfu_estimate", "exposed_collective_fraction", "collectives"),
    *("dominates", "compile_seconds", "mesh"),
}


def command(*args):
    line = [sys.executable, "-m", "mgm_jax.cli", "plan", *args]
    return subprocess.run(line, capture_output=True, text=True)


def test_2b_with_two_layers(tmp_path):
    pytest.importorskip("libtpu")
    files = {name: tmp_path / name for name in ("plan.json", "step.hlo", "page.html")}
    done = command(
        *("--config", f"{CONFIGS}/mgm_2b.py:stage=2", "--topology", "v5e-16"),
        *("--json", str(files["plan.json"]), "--dump-hlo", str(files["step.hlo"])),
        *("--html", str(files["page.html"]), "--config.model.llm.layers=2"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads(files["plan.json"].read_text())
    assert set(found) >= KEYS
    assert found["fits"] and found["chips"] == 16
    assert sum(found["hbm_by_kind"].values()) == pytest.approx(found["hbm_peak_gib"], abs=0.01)
    # float32 parameters and two moments of them: nothing is replicated that should be split.
    kinds = found["hbm_by_kind"]
    assert kinds["optimizer"] == pytest.approx(2 * kinds["params"], rel=0.01)
    assert 0.05 < found["mfu_estimate"] < found["hfu_estimate"] < 1
    assert found["step_seconds_estimate"] == pytest.approx(sum(found["split"].values()), rel=0.01)
    assert "ENTRY" in files["step.hlo"].read_text()
    assert "v5e-16" in files["page.html"].read_text()


@pytest.fixture
def tiny(tmp_path):
    """A config of a tiny model."""
    file = tmp_path / "tiny.py"
    file.write_text(
        "from mgm_jax.configs import common\n"
        "def get_config():\n"
        "    config = common.train_config()\n"
        "    config.steps = 1\n"
        f"    config.model = common.ConfigDict({TINY!r})\n"
        "    return config\n"
    )
    return file


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_vision(tiny, module):
    pytest.importorskip("libtpu")
    pictures = ("--module", module, "--batch", "2", "--config.model.image.hr_size=256")
    done = command("--config", str(tiny), "--topology", "v5e-4", *pictures)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and (found["module"], found["pictures"]) == (module, 8)
    step = found["step_seconds_estimate"]
    assert found["milliseconds_a_picture"] == pytest.approx(1e3 * step / 2, abs=0.006)
    assert bool(found["kernels"]) == (module == "convnext")
    assert step > 0 and 0 <= found["mfu_estimate"] < 1  # so small a model rounds to 0


def test_serving(tiny):
    """A tiny model on four chips: what a token costs, against the memory that it reads."""
    pytest.importorskip("libtpu")
    sizes = ("--batch", "4", "--prompt", "128", "--new", "16")
    done = command("--config", str(tiny), "--topology", "v5e-4", "--serve", *sizes)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and found["mesh"]["tensor"] == 4
    kinds = found["hbm_by_kind"]
    assert {"decoder", "towers and embedding", "cache"} < set(kinds)
    said = found["serving"]
    assert (said["requests"], said["prompt_tokens"], said["answer_tokens"]) == (4, 128, 16)
    each = said["tokens_per_second_per_chip"]
    assert 0 < each < said["bandwidth_bound_tokens_per_second_per_chip"]
    assert each == pytest.approx(said["tokens_per_second"] / 4, abs=0.1)


@pytest.mark.parametrize(
    "args,message",
    [
        (["--topology", "v5e-17"], "topology 'v5e-17' is unknown"),
        (["--topology", "v5e-16", "--config", "none.py"], "none.py: there is no such file"),
        (["--topology", "v5e-16", "--config.rematt=full"], "rematt"),
        (["--topology", "v5e-16", "--fit", "--serve"], "--fit"),
        (["--topology", "v5e-16", "--text-only", "--serve"], "--text-only"),
        (["--topology", "v5e-16", "--text-only", "--fit"], "--fit and --text-only do not go"),
        (["--topology", "v5e-16", "--module", "clip", "--serve"], "--serve and --module do not go"),
        (
            ["--topology", "v5e-16", "--module", "mining", "--config.model.convnext=None"],
            "convnext",
        ),
    ],
)
def test_what_cannot_be(args, message):
    if "--config" not in args:
        args = ["--config", f"{CONFIGS}/mgm_2b.py:stage=2", *args]
    done = command(*args)
    assert done.returncode == 1 and message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_survives_its_way_to_the_child():
    job = Job("a.py:b", "v5e-16", ("--config.seed=1",), Serve(4, 512, 64), text_only=True)
    assert Job.loads(job.dumps()) == job
    job = Job("a.py", "v5e-1", vision=Vision("convnext", 2))
    assert Job.loads(job.dumps()) == job
    assert Job.loads(Job("a.py", "v5p-64").dumps()) == Job("a.py", "v5p-64")


@pytest.mark.parametrize("shards,slots", [(64, 5), (32, 10), (16, 20), (128, 3)])
def test_slots_of_packed_rows(shards, slots):
    shape = batch_shape(*Job(f"{CONFIGS}/mgm_7b.py:stage=2", "v5e-64").read(), shards)
    assert (shape.groups, shape.slots) == (shards, slots)
    assert shape.pictures == pytest.approx(307.2)


def test_rows_of_text_alone():
    config, cfg = Job(f"{CONFIGS}/mgm_7b.py:stage=2", "v5e-64", text_only=True).read()
    shape = batch_shape(config, cfg, 64, text_only=True)
    assert (shape.rows, shape.slots, shape.pictures) == (128, 0, 0)
    (part,) = training(config, cfg, make_mesh({}, jax.devices()[:1]), text_only=True)
    assert not {"images", "image_mask"} & part.args[2].keys()


def test_modules_that_train_follow_the_rules_of_the_config():
    config, cfg = Job(f"{CONFIGS}/mgm_7b.py:stage=1,open_convnext", "v5e-64").read()
    assert plan_of(config, cfg).modules == {"projector", "mining", "convnext"}
    moves = {"decay": "cosine", "warmup": 0.03}
    config.optim.schedule = [("llm/layers[30:]/attn/.*", moves), (".*", None)]
    assert plan_of(config, cfg).modules == {"llm"}


def test_rows_that_do_not_divide():
    config, cfg = Job(f"{CONFIGS}/mgm_7b.py:stage=2", "v5e-256").read()
    with pytest.raises(TrainingError, match="config.data.batch is 128, expected a multiple of 256"):
        batch_shape(config, cfg, 256)


def test_candidates_divide_and_the_first_is_within_memory():
    place = topology("v5e-64")
    config, cfg = Job(f"{CONFIGS}/mgm_7b.py:stage=2", "v5e-64").read()
    found = search.candidates(config, cfg, place)
    assert len(set(found)) == len(found) > 10
    assert all(c.fsdp * c.tensor * c.expert == 64 for c in found)
    assert all(128 % (c.fsdp * c.accumulate) == 0 for c in found)
    fits = [c for c in found if c.gib <= place.chip.hbm]
    assert found[0] in fits
    assert found[0].seconds == min(c.seconds for c in fits)
    by_remat = {c.remat: c for c in found if (c.tensor, c.accumulate) == (1, 1)}
    assert by_remat["full"].gib < by_remat["qkv"].gib < by_remat["dots"].gib
    assert by_remat["full"].seconds > by_remat["dots+attention"].seconds


def test_candidates_of_a_batch_that_divides_nowhere():
    job = Job(f"{CONFIGS}/mgm_7b.py:stage=2,batch=7", "v5e-64")
    with pytest.raises(TrainingError, match="config.data.batch is 7: it divides over no mesh"):
        search.candidates(*job.read(), topology("v5e-64"))


def test_a_compile_waits_for_who_holds_libtpu(tmp_path):
    assert not _busy(tmp_path / "none")
    with open(tmp_path / "lock", "w") as file:
        assert not _busy(tmp_path / "lock")
        fcntl.flock(file, fcntl.LOCK_EX)
        assert _busy(tmp_path / "lock")
    assert not _busy(tmp_path / "lock")


def test_the_compilers_messages():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 18.51G of 15.75G hbm."
    assert _used(message) == int(18.51 * 2**30)
    message = "the total memory required for HLO temporaries (18.51G) exceeds available HBM"
    assert _used(message) == int(18.51 * 2**30)
    log = "I noise\nTraceback\nmgm_jax.settings.TrainingError: config.steps is 0, expected 1\n"
    assert _reason(log, 1) == "config.steps is 0, expected 1"
    assert "libtpu" in _reason("x.Error: ABORTED: libtpu multi-process lockfile", 1)
    assert issubclass(PlanError, ValueError)
