"""PEFT's adapter files in both directions (peft 0.21; DEMAND 6c): adapter_config.json and
adapter_model.safetensors.

Names and layouts are those of `convert.families`: the adapter of a matrix lies where the matrix
does, behind `base_model.model.`; parameters that were trained whole (`modules_to_save`) too.
Numpy only; values are never rescaled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.families import mgm
from mgm_jax.convert.readers import open_source
from mgm_jax.convert.rules import MATRIX, Rule, export_params, import_params, their_names
from mgm_jax.convert.towers import PREFIX
from mgm_jax.convert.writers import Spec, as_bytes, header, whole_file, write_all, write_text
from mgm_jax.lora.adapters import adapted
from mgm_jax.lora.config import WHOLE, LoraConfig
from mgm_jax.models.config import MgmConfig
from mgm_jax.tree import flatten

CONFIG, WEIGHTS, BIN = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
REST = "non_lora_trainables.bin"  # beside them, of LLaVA's trainer (MGM_SPEC 3.4)
READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora")
# Whatever these say, the adapter computes the same. `target_modules` is told by the tensors.
NEUTRAL = (
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("target_modules", "exclude_modules", "modules_to_save", "peft_version", "megatron_core"),
    *("megatron_config", "qalora_group_size", "eva_config", "corda_config", "loftq_config"),
    *("runtime_config", "ensure_weight_tying", "layers_pattern"),
)
ALLOWED = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal")}


# ------------------------------------------------------------------------------------------ rules


def adapter_rules(cfg: MgmConfig) -> list[Rule]:
    """The adapters' tensors of every matrix that can have one, by their PEFT names."""
    table = []
    for rule in mgm.rules(cfg):
        if rule.perm == MATRIX and rule.ours.endswith("/kernel") and not rule.experts:
            theirs, ours = rule.theirs.removesuffix(".weight"), rule.ours.removesuffix("/kernel")
            for name, leaf in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
                where = f"{PREFIX}{theirs}.{name}.weight"
                table.append(Rule(where, f"{ours}/{leaf}", MATRIX, rule.depth, rule.start))
    return table


def whole_rules(cfg: MgmConfig) -> list[Rule]:
    """The parameters that may be trained whole, by their PEFT names."""
    return [
        Rule(PREFIX + r.theirs, r.ours, r.perm)
        for r in mgm.rules(cfg)
        if re.fullmatch(WHOLE, r.ours)
    ]


# ---------------------------------------------------------------------------------------- writing


def save(
    directory: Path,
    params: Mapping[str, Any],
    cfg: MgmConfig,
    lora: LoraConfig,
    base: str,
    *,
    dtype: str = "float32",
) -> None:
    """Writes the two files. `params`: the adapters (B unscaled) and what was trained whole, a tree;
    `base`: what base_model_name_or_path says. ValueError for a parameter that PEFT has no place
    for."""
    flat = flatten(params)
    rules = adapter_rules(cfg) + whole_rules(cfg)
    if lost := sorted(set(flat) - {r.ours for r in rules}):
        raise ValueError(f"{lost[0]}: a PEFT adapter has no place for it")
    tensors = {n: np.asarray(a).astype(_dtype(dtype)) for n, a in export_params(flat, rules)}
    write_safetensors(directory / WEIGHTS, tensors)
    config = describe(flat, cfg, lora, base)
    write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    specs = [Spec(n, a.shape, a.dtype) for n, a in sorted(tensors.items())]
    with whole_file(file) as stream:
        write_all(stream, header(specs))
        for spec in specs:
            write_all(stream, as_bytes(tensors[spec.name]))


def describe(flat: Iterable[str], cfg: MgmConfig, lora: LoraConfig, base: str) -> dict[str, Any]:
    """adapter_config.json of an adapter with the parameters `flat`."""
    flat, layers, others = set(flat), set(), set()
    for rule in mgm.rules(cfg):
        module = rule.theirs.removesuffix(".weight")
        if rule.ours.removesuffix("/kernel") in adapted(flat):
            stacked = module.removeprefix("model.layers.{i}.")
            (others if stacked == module else layers).add(stacked)
    targets = [re.escape(name) for name in sorted(others)]
    if layers:  # not a list of last names: a tower's layers have the same ones
        names = "|".join(map(re.escape, sorted(layers)))
        targets.insert(0, rf"model\.layers\.\d+\.({names})")
    whole = {r.theirs for r in whole_rules(cfg) if r.ours in flat}
    saved = sorted({_module(name) for name in whole})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": "|".join(targets),
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
    }


def _module(theirs: str) -> str:
    """The module of a tensor that was trained whole: mm_projector, vlm_uni_aux_projector, ..."""
    path = re.sub(r"(\.\d+)?\.(weight|bias)$", "", theirs)
    return path.split(".")[-1]


def _dtype(name: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


# ---------------------------------------------------------------------------------------- reading


def load(directory: Path, cfg: MgmConfig) -> tuple[LoraConfig, dict[str, Any]]:
    """(config, tree of float32 numpy arrays) of an adapter that PEFT or LLaVA's trainer made.

    ValueError names a field or a tensor that is not implemented, missing, or not the model's;
    FileNotFoundError a missing file.
    """
    values = read_config(directory)
    source = _weights(directory)
    tensors = {name: np.float32(source.read(name)) for name in source}
    if (directory / REST).is_file():
        rest = open_source(directory / REST)
        tensors |= {PREFIX + n.removeprefix(PREFIX): np.float32(rest.read(n)) for n in rest}
    rules = [r for r in adapter_rules(cfg) + whole_rules(cfg) if their_names(r)[0] in tensors]
    _refuse_unknown(tensors, rules, directory)
    params = import_params(tensors, rules, str(directory))
    modules = adapted(flatten(params))
    if not modules:
        raise ValueError(f"{directory}: no adapter of this model inside")
    return config_of(values, modules, directory), params


def read_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json, checked. ValueError for what we would compute otherwise."""
    file = directory / CONFIG
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: not a PEFT adapter") from None
    except ValueError as e:
        raise ValueError(f"{file}: not JSON ({e})") from e
    if not isinstance(values, dict):
        raise ValueError(f"{file}: found a {type(values).__name__}, expected an object")
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type is {values.get('peft_type')!r}, expected 'LORA'")
    for key, value in values.items():
        if key in (*READ, *NEUTRAL):
            continue
        if key in ALLOWED:
            if value not in ALLOWED[key]:
                raise ValueError(f"{file}: {key} is {value!r}, expected one of {ALLOWED[key]}")
        elif value not in (None, False, [], {}, "", 0):
            raise ValueError(f"{file}: {key} is {value!r}, which is not implemented")
    return values


def config_of(values: Mapping[str, Any], modules: Iterable[str], where: Path) -> LoraConfig:
    """The adapter's config; `modules`: the Linears that have an adapter."""
    file = where / CONFIG
    for key in ("r", "lora_alpha"):
        if not isinstance(values.get(key), int | float):
            raise ValueError(f"{file}: {key} is {values.get(key)!r}, expected a number")
    return LoraConfig(
        rank=values["r"],
        alpha=float(values["lora_alpha"]),
        targets="|".join(modules),
        dropout=float(values.get("lora_dropout") or 0),
        rslora=bool(values.get("use_rslora")),
    )


def _weights(directory: Path) -> TensorSource:
    for name in (WEIGHTS, BIN):
        if (directory / name).is_file():
            return open_source(directory / name)
    raise FileNotFoundError(f"{directory}: neither {WEIGHTS} nor {BIN} is there")


def _refuse_unknown(tensors: Mapping, rules: list[Rule], directory: Path) -> None:
    known = {name for rule in rules for name in their_names(rule)}
    for name in sorted(set(tensors) - known):
        if ".experts." in name:
            raise ValueError(
                f"{directory}: tensor {name!r} adapts an expert; adapters of experts are not "
                "implemented, those of attention are"
            )
        if "lora_embedding" in name or "lora_magnitude" in name:
            kind = "an embedding" if "embedding" in name else "a magnitude (DoRA)"
            raise ValueError(f"{directory}: tensor {name!r} is of {kind}, which is not implemented")
        raise ValueError(f"{directory}: tensor {name!r} has no place in this model")
