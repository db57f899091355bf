"""A tiny demo to train from, an even smaller model, and runs of both."""

import copy
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest


def pytest_configure(config):
    """One compilation cache for the session's processes: most of them compile the same step."""
    if hasattr(config, "workerinput"):
        return  # pytest-xdist's process has the environment of the one that started it
    cache = tempfile.mkdtemp(prefix="mgm_jax_tests_")
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    # Where libtpu is installed, a process that looks for TPUs keeps `mgm-jax plan` from it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory):
    """The directory of a smoke demo up to its base models, whose towers are random."""
    from mgm_jax.demo import run

    root = tmp_path_factory.mktemp("demo")
    demo = run.Demo(root, seed=0, size="smoke")
    demo.build_data()
    demo.build_tokenizer()
    demo._save_base("mining", {})
    shutil.copytree(root / "base_mining", root / "mining_stage1" / "model")  # what stage 2 reads
    return root


@pytest.fixture(scope="session")
def train_command(tiny_demo):
    """(workdir, *overrides) -> the command line of a stage 2 run of the tiny demo."""
    from mgm_jax.configs import demo

    def command(workdir, *overrides, arg="stage=2"):
        arg = f"{arg},size=smoke,root={tiny_demo}"
        return [
            sys.executable,
            *("-m", "mgm_jax.train"),
            f"--config={Path(demo.__file__)}:{arg}",
            f"--workdir={workdir}",
            *overrides,
        ]

    return command


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser_path():
    """Of a headless browser; skips where there is none."""
    if not (path := next(filter(None, map(shutil.which, BROWSERS)), None)):
        pytest.skip(f"no browser: found none of {', '.join(BROWSERS)}")
    return path


@pytest.fixture
def bucket():
    """An empty folder under gs://, in this process only."""
    import fsspec
    from etils import epath

    from tests.bucket import Bucket

    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    path = epath.Path("gs://bucket/data")
    path.mkdir(parents=True)
    return path


@pytest.fixture(scope="session")
def run_command():
    """Runs a command to its end; returns the finished process. `devices` simulates a mesh."""

    def run(command, devices=1, **kwargs):
        flags = (
            f"--xla_force_host_platform_device_count={devices} "
            "--xla_cpu_collective_call_terminate_timeout_seconds=600"
        )
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, capture_output=True, text=True, env=env, **kwargs)

    return run


TINY = dict(  # a model that compiles in seconds
    image=dict(lr_size=8, hr_size=32, aspect="pad"),
    clip=dict(
        image_size=8,
        patch_size=4,
        width=16,
        layers=2,
        heads=2,
        mlp_dim=32,
        norm_eps=1e-5,
        act="quick_gelu",
        select_layer=-2,
    ),
    convnext=dict(widths=(8, 16), depths=(1, 1), patch_size=4, kernel_size=3, norm_eps=1e-6),
    llm=dict(
        vocab_size=576,
        dim=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_dim=64,
        act="silu",
        norm_eps=1e-5,
        rope_theta=1e4,
        tied_embeddings=False,
        zero_centred_norm=False,
        embed_scale=None,
        experts=None,
    ),
    mining_eps=1e-5,
    projector="mlp2x_gelu",
)


WORDS = "which what digit is on the card and the colour of the left one please tell".split()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tokenizer"))


def make_tiny_model(directory):
    """TINY with random weights and a tokenizer, as `load` gives one, float32; its answers differ by
    the question and the picture."""
    import jax
    import numpy as np

    from mgm_jax.api import LoadedModel
    from mgm_jax.models.config import MgmConfig
    from mgm_jax.program import abstract_model
    from mgm_jax.text import get_template, train_tokenizer
    from mgm_jax.tree import flatten, unflatten

    rng = np.random.default_rng(0)
    texts = [get_template("v1").system] * 3 + [" ".join(rng.choice(WORDS, 8)) for _ in range(100)]
    tokenizer = train_tokenizer(texts, directory / "tokenizer.model", 400, legacy=False)
    values = copy.deepcopy(TINY)
    values["llm"]["vocab_size"] = 400
    module, _, shapes, _ = abstract_model(MgmConfig.from_dict(values), dtype="float32")

    def draw(name, shape):  # norms near 1, products that keep the size of what they are given
        values = rng.normal(size=shape).astype(np.float32)
        if name.endswith("scale"):
            return 1 + 0.1 * values
        return values * shape[-2] ** -0.5 if name.endswith("kernel") else values

    params = unflatten({n: draw(n, s.shape) for n, s in flatten(shapes).items()})
    return LoadedModel(module, jax.device_put(params), tokenizer, "v1", {})


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_demo, tmp_path_factory):
    from mgm_jax.text import SentencePieceTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    SentencePieceTokenizer.from_file(tiny_demo / "tokenizer.model", legacy=False).save(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_config(tiny_demo, tiny_tokenizer):
    """(**{"dotted__key": value}) -> the config of a six-step run of TINY from random parameters."""
    from mgm_jax.configs import common

    def make(**values):
        c = common.train_config()
        c.steps = 6
        c.model = copy.deepcopy(TINY)
        c.tokenizer = str(tiny_tokenizer)
        c.dtype = c.frozen_dtype = "float32"
        c.remat = "none"
        c.data.sources.main.path = str(tiny_demo / "data" / "train.json")
        c.data.sources.main.images = str(tiny_demo / "data")
        c.data.template = "v1"
        c.data.batching = "pad"
        c.data.batch = 8
        c.data.length = 96
        c.data.workers = c.data.threads = 0
        c.checkpoint.every = 2
        c.log_every = 1
        for key, value in values.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
        return c

    return make


@pytest.fixture(scope="session")
def tiny_base(tiny_tokenizer, tmp_path_factory):
    """The directory of a random float32 model of TINY."""
    import flax.linen as nn
    import jax

    from mgm_jax.checkpoint import Checkpoint, save_checkpoint
    from mgm_jax.models.config import MgmConfig
    from mgm_jax.program import abstract_model
    from mgm_jax.text import load_tokenizer

    cfg = MgmConfig.from_dict(TINY)
    model, batch, _, _ = abstract_model(cfg)
    params = jax.jit(lambda key: nn.unbox(model.init(key, batch)["params"]))(jax.random.key(0))
    directory = tmp_path_factory.mktemp("base")
    save_checkpoint(directory, Checkpoint(cfg, params, load_tokenizer(tiny_tokenizer), "v1"))
    return directory


@pytest.fixture(scope="session")
def tiny_config_file(tiny_config, tmp_path_factory):
    """A config file whose `get_config` gives `tiny_config()`."""
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    values = tiny_config().to_dict()
    file.write_text(
        textwrap.dedent(f"""
        from ml_collections import ConfigDict

        from mgm_jax.configs import common


        def get_config(arg=None):
            common.parse_arg(arg, shout=False, number=1)
            return ConfigDict({values!r})
        """)
    )
    return file


@pytest.fixture
def run_tiny(tiny_config, tmp_path):
    """(name, **values) -> the workdir of a finished run."""

    from mgm_jax import train

    def run(name, **values):
        train.train(tiny_config(**values), tmp_path / name)
        return tmp_path / name

    return run
