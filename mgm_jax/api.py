"""The library's front door: `mgm_jax.load(dir)` and what a loaded model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgm_jax import sharding
from mgm_jax.checkpoint import Checkpoint, check_params, describe, load_checkpoint, save_checkpoint
from mgm_jax.generate import engine
from mgm_jax.generate.engine import Request
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.train import abstract_model


@dataclasses.dataclass
class LoadedModel:
    """A model with everything that its checkpoint says about it."""

    module: Mgm
    params: dict[str, Any]
    tokenizer: Any
    template: str
    provenance: dict[str, Any]

    @property
    def config(self) -> MgmConfig:
        return self.module.cfg

    def forward(self, batch):
        """A batch of the batch contract -> (logits [B, T, V], named intermediates)."""
        return self.module.apply({"params": self.params}, batch)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        progress: bool = False,
    ) -> list[str]:
        """Greedy answers, in the order of the requests; ValueError without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("the model directory has no tokenizer, so it cannot read a question")
        return engine.generate(
            self.module,
            self.params,
            self.tokenizer,
            self.template,
            requests,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )

    def chat(self, question: str, images: Sequence[Any] = (), *, max_new_tokens: int = 64) -> str:
        """The answer to one question about some pictures (paths, files or PIL pictures)."""
        request = Request([("user", question)], images)
        return self.generate([request], max_new_tokens=max_new_tokens)[0]


def load(directory: str | Path, *, mesh=None, dtype: str = "bfloat16") -> LoadedModel:
    """Reads a self-describing model directory; `dtype` is that of the computation.

    With `mesh` (see `sharding.make_mesh`) the parameters are sharded over it. CheckpointError names
    what is missing or does not fit.
    """
    config = MgmConfig.from_dict(describe(directory)["model"])
    module, _, shapes, axes = abstract_model(config, dtype=dtype)
    shardings = sharding.param_shardings(shapes, axes, mesh) if mesh is not None else None
    checkpoint = load_checkpoint(directory, shardings)
    check_params(checkpoint.params, shapes, str(directory))
    return LoadedModel(
        module, checkpoint.params, checkpoint.tokenizer, checkpoint.template, checkpoint.provenance
    )


def save(model: LoadedModel, directory: str | Path) -> None:
    """Writes what `load` reads."""
    parts = (model.config, model.params, model.tokenizer, model.template, model.provenance)
    save_checkpoint(directory, Checkpoint(*parts))
