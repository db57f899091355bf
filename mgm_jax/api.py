"""The library's front door: `mgm_jax.load(dir)` and what a loaded model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from mgm_jax import parity, sharding
from mgm_jax.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_params,
    describe,
    load_checkpoint,
    quantization_of,
    save_checkpoint,
    whole_model,
)
from mgm_jax.convert.hf import load_hf, read_config, read_tokenizer
from mgm_jax.convert.llm_config import template_of
from mgm_jax.convert.overrides import split_overrides, with_overrides, with_switches
from mgm_jax.data.examples import Example
from mgm_jax.generate import answers
from mgm_jax.generate.engine import Engine
from mgm_jax.generate.prompts import Request, encode_request
from mgm_jax.generate.sampling import Sampling
from mgm_jax.generate.tickets import Answer
from mgm_jax.lora import adapters
from mgm_jax.lora import directory as adapter_directory
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.program import abstract_run
from mgm_jax.quantize import params as quantized
from mgm_jax.quantize.config import QuantConfig, make
from mgm_jax.switches import choose
from mgm_jax.text import get_template
from mgm_jax.tree import flatten, unflatten


@dataclasses.dataclass
class LoadedModel:
    """A model with everything that its checkpoint says about it.

    `tokenizer` is None when the checkpoint has none. `provenance["config.json"]` is the config.json
    of the Hugging Face checkpoint that the weights came from, if any. `switches`:
    those of `mgm_jax.switches` about prompts. `mesh`: that of the parameters, if any. `engine`:
    what answers are written with, made when they are first asked for.
    """

    module: Mgm
    params: dict[str, Any]
    tokenizer: Any
    template: str
    provenance: dict[str, Any]
    switches: Mapping[str, Any] = dataclasses.field(default_factory=lambda: choose("load"))
    quantization: QuantConfig | None = None
    mesh: Mesh | None = None
    engine: Engine | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

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
        batch_size: int = 32,
        progress: bool = False,
        cli_eos: str = "family",
        **sampling,
    ) -> list[str]:
        """Answers in the order of the requests, `batch_size` of them written at a time.

        `sampling`: fields of `generate.sampling.Sampling`, such as `max_new_tokens` (here 64 unless
        given) and `temperature` (0: greedy). `cli_eos`: what ends an answer (`mgm_jax.switches`).
        ValueError for a setting out of range or a request that cannot be used, ImageError for an
        unreadable picture, CheckpointError without a tokenizer.
        """
        found = self.answers(requests, batch_size=batch_size, cli_eos=cli_eos, **sampling)
        texts = []
        for answer in tqdm(found, "answers", len(requests), disable=not progress):
            if isinstance(answer, Exception):
                raise answer
            texts.append(answer.text)
        return texts

    def answers(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = 32,
        cli_eos: str = "family",
        **sampling,
    ) -> Iterator[Answer | Exception]:
        """As `generate`, but whole Answers as they are finished, in order; a request that cannot be
        answered gives the exception that says why, and the others go on."""
        how = Sampling(**({"max_new_tokens": 64} | sampling))
        items = [(request, how, number) for number, request in enumerate(requests)]
        return self.answer_items(items, batch_size=batch_size, cli_eos=cli_eos)

    def answer_items(
        self, items: Sequence[answers.Item], *, batch_size: int = 32, cli_eos: str = "family"
    ) -> Iterator[Answer | Exception]:
        """`answers` where each request has settings and a number of its own (`answers.Item`)."""
        self._need_tokenizer()
        return answers.answers(self, items, slots=batch_size, cli_eos=cli_eos)

    def chat(self, question: str, images: Sequence[Any] = (), **sampling) -> str:
        """The answer to one question about some pictures (paths, files or PIL pictures); `sampling`
        as in `generate`."""
        return self.generate([Request([("user", question)], images)], **sampling)[0]

    def encode(self, request: Request) -> Example:
        """A request as token arrays, its pictures not yet read; ValueError where it does not
        fit."""
        self._need_tokenizer()
        template = get_template(self.template)
        how = (self.config.visual_tokens, self.tokenizer, template)
        return encode_request(request, *how, **self.prompts)

    @property
    def prompts(self) -> dict[str, Any]:
        """The options of `generate.prompts` that the checkpoint and the switches say."""
        released = self.switches.get("llama3_released_prompt") == "release"
        return {
            "max_length": self._max_length,
            "infer_truncate": self.switches.get("infer_truncate", "error"),
            "release": released and get_template(self.template).name.startswith("llama_3"),
        }

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
    base: str | Path | None = None,
    quantize: QuantConfig | str | None = None,
) -> LoadedModel:
    """Reads a self-describing model directory, or the original's (config.json + safetensors); or an
    adapter's (`lora.directory`) and its base: `base`, or else the model that it says.

    `dtype` is that of the computation. With `mesh` (see `sharding.make_mesh`) the parameters are
    sharded over it. `overrides` change configuration values (`convert.overrides`), such as
    `{"gemma_act": "tanh"}`. `switches` are those of `mgm_jax.switches` that act here (model, load);
    `quantize`: a scheme (int8, int4, nf4) that weights are held in, if they are not stored in one;
    `faithful` takes the original's side of the others of them. CheckpointError or ValueError names
    what is missing or does not fit.
    """
    directory = Path(directory)
    if adapter_directory.is_adapter(directory):
        place = adapter_directory.find_base(directory, base)
        options = {"overrides": overrides, "faithful": faithful, "switches": switches}
        model = load(place, mesh=mesh, dtype=dtype, quantize=quantize, **options)
        return with_adapter(model, directory, mesh)
    if base is not None:
        raise CheckpointError(f"base is given, but {directory} is no adapter")
    chosen = choose(("model", "load"), faithful, switches)
    original = not (directory / "mgm.json").exists() and (directory / "config.json").exists()
    read = _read_hf if original else _read_ours
    checkpoint = read(directory, overrides or {}, mesh, dtype)
    config = with_switches(checkpoint.config, chosen)
    quant = checkpoint.quantization
    module, _, shapes, axes = abstract_run(config, quant=quant, dtype=dtype)
    check_params(checkpoint.params, shapes, str(directory))
    params = checkpoint.params
    if original:
        shardings = sharding.param_shardings(shapes, axes, mesh) if mesh is not None else None
        params = jax.device_put(params, shardings)
    if quantize:
        if quant:
            raise CheckpointError(f"quantize is given, but {directory} is {quant.scheme} already")
        quant = make(quantize) if isinstance(quantize, str) else quantize
        params = quantized.quantize(params, quant)
    parts = (checkpoint.tokenizer, checkpoint.template, checkpoint.provenance)
    ours = {name: chosen[name] for name in choose("load")}
    return LoadedModel(module, params, *parts, ours, quant, mesh)


def with_adapter(model: LoadedModel, directory: str | Path, mesh=None) -> LoadedModel:
    """The model with the adapter in `directory` beside its weights, which are shared."""
    lora, params = adapter_directory.read(directory, model.config)
    cfg, template = adapter_directory.as_trained(directory, model.config, model.template)
    _, _, shapes, axes = abstract_run(cfg, lora, model.quantization)
    flat, own = flatten(model.params), flatten(params)
    if mesh is not None:
        placed = flatten(sharding.param_shardings(shapes, axes, mesh))
        own = {n: jax.device_put(a, placed[n]) for n, a in own.items()}
    whole = unflatten(flat | {n: jnp.asarray(a) for n, a in own.items()})
    check_params(whole, shapes, str(directory))
    module = model.module.clone(cfg=cfg)
    params = adapters.active(whole, lora)
    return dataclasses.replace(model, module=module, params=params, template=template)


def _read_ours(directory: Path, overrides, mesh, dtype) -> Checkpoint:
    _, changes = split_overrides(overrides, {})
    config = whole_model(directory)
    _, _, shapes, axes = abstract_run(config, quant=quantization_of(describe(directory)))
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
    """Writes what `load` reads. ValueError for a model with an adapter."""
    if names := adapters.adapted(flatten(model.params)):
        raise ValueError(
            f"the model has an adapter ({names[0]} ...): merge it first (mgm-jax lora merge)"
        )
    parts = (model.config, model.params, model.tokenizer, model.template, model.provenance)
    save_checkpoint(directory, Checkpoint(*parts, model.quantization))
