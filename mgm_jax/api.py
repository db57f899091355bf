"""The library's front door: `mgm_jax.load(dir)` and what a loaded model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mgm_jax import parity, sharding
from mgm_jax.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_params,
    load_checkpoint,
    save_checkpoint,
    whole_model,
)
from mgm_jax.convert.hf import load_hf, read_config, read_tokenizer
from mgm_jax.convert.llm_config import template_of
from mgm_jax.convert.overrides import split_overrides, with_overrides, with_switches
from mgm_jax.generate import engine
from mgm_jax.generate.engine import Request
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.switches import choose
from mgm_jax.train import abstract_model


@dataclasses.dataclass
class LoadedModel:
    """A model with everything that its checkpoint says about it.

    `tokenizer` is None when the checkpoint has none. `provenance["config.json"]` is the config.json
    of the Hugging Face checkpoint that the weights came from, if any. `switches`:
    those of `mgm_jax.switches` about prompts.
    """

    module: Mgm
    params: dict[str, Any]
    tokenizer: Any
    template: str
    provenance: dict[str, Any]
    switches: Mapping[str, Any] = dataclasses.field(default_factory=lambda: choose("load"))

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
        cli_eos: str = "family",
    ) -> list[str]:
        """Greedy answers, in the order of the requests; CheckpointError without a tokenizer.

        `cli_eos`: what ends an answer (`mgm_jax.switches`).
        """
        self._need_tokenizer()
        return engine.generate(
            self.module,
            self.params,
            self.tokenizer,
            self.template,
            requests,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
            max_length=self._max_length,
            cli_eos=cli_eos,
            **self.switches,
        )

    def chat(self, question: str, images: Sequence[Any] = (), *, max_new_tokens: int = 64) -> str:
        """The answer to one question about some pictures (paths, files or PIL pictures)."""
        request = Request([("user", question)], images)
        return self.generate([request], max_new_tokens=max_new_tokens)[0]

    def _need_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise CheckpointError(
                "tokenizer is None, expected one: the checkpoint has no tokenizer files, so only "
                "token ids work (forward, forward_ids, generate_ids)"
            )

    # --- the float path: the original's tensors in and out, see mgm_jax.parity ---

    def encode_images(self, lr, hr):
        """Normalised float pictures -> (features [P, N, D], named intermediates)."""
        return parity.encode_images(self.module, self.params, lr, hr)

    def forward_ids(self, input_ids, lr, hr, labels=None):
        """Rows of ids with -200 -> inputs_embeds, labels, attention_mask, logits, loss."""
        side = self._original("tokenizer_padding_side", "right")
        args = (self.module, self.params, input_ids, lr, hr, labels)
        return parity.forward_ids(*args, max_length=self._max_length, padding_side=side)

    def generate_ids(self, ids, lr, hr, max_new_tokens: int, eos_id=None) -> list[int]:
        """A prompt's ids with -200 (or a list of prompts') -> greedy new ids, the last one eos."""
        args = (self.module, self.params, ids, lr, hr, max_new_tokens, eos_id)
        return parity.generate_ids(*args, max_length=self._max_length)

    def grads_ids(self, input_ids, lr, hr, labels, *, stage: int):
        """Gradients of the loss in a training stage -> {original's name: torch-layout array}."""
        args = (self.module, self.params, input_ids, lr, hr, labels)
        towers = {
            "clip": self._original("optimize_vision_tower", False),
            "convnext": self._original("optimize_vision_tower_aux", False),
        }
        return parity.grads_ids(*args, stage=stage, max_length=self._max_length, **towers)

    @property
    def _max_length(self) -> int | None:
        return self._original("tokenizer_model_max_length", None)

    def _original(self, key: str, default):
        return (self.provenance.get("config.json") or {}).get(key, default)


def load(
    directory: str | Path,
    *,
    mesh=None,
    dtype: str = "bfloat16",
    overrides: Mapping[str, Any] | None = None,
    faithful: bool = False,
    switches: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Reads a self-describing model directory, or the original's (config.json + safetensors).

    `dtype` is that of the computation. With `mesh` (see `sharding.make_mesh`) the parameters are
    sharded over it. `overrides` change configuration values (`convert.overrides`), such as
    `{"gemma_act": "tanh"}`. `switches` are those of `mgm_jax.switches` that act here (model, load);
    `faithful` takes the original's side of the others of them. CheckpointError or ValueError names
    what is missing or does not fit.
    """
    chosen = choose(("model", "load"), faithful, switches)
    directory = Path(directory)
    original = not (directory / "mgm.json").exists() and (directory / "config.json").exists()
    read = _read_hf if original else _read_ours
    checkpoint = read(directory, overrides or {}, mesh, dtype)
    config = with_switches(checkpoint.config, chosen)
    module, _, shapes, axes = abstract_model(config, dtype=dtype)
    check_params(checkpoint.params, shapes, str(directory))
    params = checkpoint.params
    if original:
        shardings = sharding.param_shardings(shapes, axes, mesh) if mesh is not None else None
        params = jax.device_put(params, shardings)
    parts = (checkpoint.tokenizer, checkpoint.template, checkpoint.provenance)
    return LoadedModel(module, params, *parts, {name: chosen[name] for name in choose("load")})


def _read_ours(directory: Path, overrides, mesh, dtype) -> Checkpoint:
    _, changes = split_overrides(overrides, {})
    config = whole_model(directory)
    _, _, shapes, axes = abstract_model(config, dtype=dtype)
    shardings = sharding.param_shardings(shapes, axes, mesh) if mesh is not None else None
    checkpoint = load_checkpoint(directory, shardings)
    return dataclasses.replace(checkpoint, config=with_overrides(config, changes))


def _read_hf(directory: Path, overrides, mesh, dtype) -> Checkpoint:
    config, params = load_hf(directory, overrides=overrides)
    values = dict(read_config(directory))
    values |= split_overrides(overrides, values)[0]
    template = template_of(values, str(directory / "config.json"))
    return Checkpoint(config, params, read_tokenizer(directory), template, {"config.json": values})


def save(model: LoadedModel, directory: str | Path) -> None:
    """Writes what `load` reads."""
    parts = (model.config, model.params, model.tokenizer, model.template, model.provenance)
    save_checkpoint(directory, Checkpoint(*parts))
