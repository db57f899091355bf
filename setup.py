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
TEST = ["pytest", "pytest-timeout", "hypothesis", "ruff", "torch", "transformers", "build"]

setup(
    name="mgm-jax",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "mgm_jax/__init__.py").read_text())[1],
    description="Mini-Gemini (arXiv 2403.18814) for TPU pods, in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["mgm_jax", "mgm_jax.*"]), "mgm_jax.configs"],
    package_dir={"mgm_jax.configs": "configs"},
    install_requires=[
        "absl-py",
        "etils",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=11",
        "safetensors>=0.5",
        "sentencepiece>=0.2.3",
        "tokenizers>=0.22",
        "tqdm",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda12]>=0.10.2"],
        "demo": DEMO,
        "test": [*DEMO, *TEST],
    },
    entry_points={"console_scripts": ["mgm-jax = mgm_jax.cli:main"]},
)
