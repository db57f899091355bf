"""Packaging. The wheel holds `mgm_jax` alone; `configs/` is mapped into it as `mgm_jax.configs`.

big_vision is not a dependency: it is on no package index, has no packaging of its own, and cannot
be installed by pip. We read and write its file formats (`mgm-jax convert from-bv`, `to-bv`) and
follow its conventions instead. With a checkout on PYTHONPATH, its configs can name our tower,
`mgm_jax.integrations.big_vision_vit`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

DEMO = ["mlxtend", "scikit-learn", "scikit-image", "matplotlib"]
TFDS = ["tensorflow-datasets>=4.9.10", "importlib_resources"]  # which tfds needs and does not name
EVALS = ["openpyxl", "pyarrow", "httpx2"]  # MMBench's sheet, MMMU's data set, judges
GEN = ["diffusers>=0.42", "torch", "transformers"]  # pictures from prompts
OCR = ["rapidocr>=3.10", "onnxruntime"]  # the models lie in the wheel
PLAN = ["libtpu==0.0.42.*"]  # the TPU compiler, which needs no TPU
SERVE = ["fastapi>=0.115", "uvicorn", "prometheus-client"]
WEB = ["gradio>=6.31,<7"]  # needs Pillow < 13
TEST = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff"]
TEST += ["torch", "transformers", "peft", "build", "diffusers>=0.42", "pexpect"]
TEST += ["openai", "httpx", "playwright"]  # which drives a browser that is there

setup(
    name="mgm-jax",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "mgm_jax/__init__.py").read_text())[1],
    description="Mini-Gemini (arXiv 2403.18814) for TPU pods, in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["mgm_jax", "mgm_jax.*"]),
        "mgm_jax.configs",
        "mgm_jax.configs.eval",
    ],
    package_dir={"mgm_jax.configs": "configs"},
    package_data={"mgm_jax.evals.report": ["*.css", "*.html", "*.js"]},
    install_requires=[
        "absl-py",
        "array_record>=0.8",
        "etils[epath]",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "ml_collections>=1.1",
        "msgpack",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=11",
        "psutil",
        "safetensors>=0.5",
        "sentencepiece>=0.2.3",
        "tokenizers>=0.22",
        "tqdm",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda12]>=0.10.2"],
        "tfds": TFDS,
        "gcs": ["gcsfs"],  # gs:// for all but ArrayRecord
        "tensorboard": ["tensorboardX"],
        "wandb": ["wandb"],
        "demo": DEMO,
        "evals": EVALS,
        "gen": GEN,
        "ocr": OCR,
        "plan": PLAN,
        "serve": SERVE,
        "web": [*SERVE, *WEB],
        "test": [*DEMO, *EVALS, *PLAN, *SERVE, *TFDS, *WEB, *TEST],
    },
    entry_points={
        "console_scripts": ["mgm-jax = mgm_jax.cli:main"],
        "lmms_eval.models": ["mgm_jax = mgm_jax.integrations.lmms_eval_plugin:manifest"],
    },
)
