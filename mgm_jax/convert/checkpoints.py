"""Whole checkpoints: an original's directory -> a self-describing one of ours, and back.

Nothing of the source is copied but its tokenizer and the text of its config.json, which the way
back starts from (MGM_SPEC 3.1, 3.6).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mgm_jax.checkpoint import Checkpoint, describe, write_description
from mgm_jax.convert import hf
from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.families import mgm
from mgm_jax.convert.plan import as_dtype
from mgm_jax.convert.rules import Rule
from mgm_jax.convert.stream import export_stream, import_stream
from mgm_jax.convert.towers import clip_heads, with_towers
from mgm_jax.convert.writers import write_text
from mgm_jax.models.config import ImageSpec, MgmConfig
from mgm_jax.text import SentencePieceTokenizer

TEMPLATES = {  # of the released models, by model_type; --template overrides (MGM_SPEC 1.1)
    "mgm": "v1",
    "mgm_gemma": "gemma",
    "mgm_mistral": "mistral_instruct",
    "mgm_mixtral": "mistral_instruct",
}
LICENCE = (
    "The weights keep the licences of their sources (the language model's, CLIP's, OpenCLIP's and "
    "Mini-Gemini's); read them before use."
)
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
TIED_HEAD = Rule(HEAD, "llm/embed/embedding")  # a tied head that the source stored all the same


def model_config(config: Mapping, tensors: TensorSource, heads: int | None) -> MgmConfig:
    """The model by config.json and the shapes of its tensors; nothing is loaded."""
    width = tensors[f"{hf.CLIP}embeddings.class_embedding"].shape[0]
    if not heads and width % 64:
        raise ValueError(
            f"{tensors.where}: CLIP is {width} wide, which tells no number of heads (64 channels "
            "each); give --tower clip=PATH with a config.json that has num_attention_heads"
        )
    clip = hf._clip(tensors, config, heads or width // 64)
    return MgmConfig(
        image=ImageSpec(
            lr_size=clip.image_size,
            hr_size=config["image_size_aux"],
            aspect=config.get("image_aspect_ratio") or "square",
            grid=config.get("image_grid", 1),
            use_global=config.get("image_global", False),
        ),
        clip=clip,
        convnext=hf._convnext(tensors),
        llm=hf._decoder(config),
        mining_eps=1e-5,  # torch's LayerNorm default
        projector=config["mm_projector_type"],
    )


def same_tensor(source: TensorSource, a: str, b: str, rows: int = 4096) -> bool:
    """Whether two matrices are equal bit for bit, compared some rows at a time."""
    if (source[a].shape, source[a].dtype) != (source[b].shape, source[b].dtype):
        return False
    for start in range(0, len(source[a]), rows):
        part = (start, min(start + rows, len(source[a])))
        x, y = (source.read_rows(name, *part) for name in (a, b))
        if not np.array_equal(x.view(np.uint8), y.view(np.uint8)):
            return False
    return True


def read_tokenizer(directory: Path) -> SentencePieceTokenizer | None:
    """The sentencepiece tokenizer of a Hugging Face directory; None if it has none."""
    model, options = directory / "tokenizer.model", directory / "tokenizer_config.json"
    if not model.is_file():
        return None
    found = json.loads(options.read_text()) if options.is_file() else {}
    legacy, add_bos = found.get("legacy"), found.get("add_bos_token")
    return SentencePieceTokenizer.from_file(
        model,
        legacy=True if legacy is None else legacy,
        add_bos=True if add_bos is None else add_bos,
    )


class _Hashes(threading.Thread):
    """sha256 of files, computed while they are converted."""

    def __init__(self, files):
        super().__init__(daemon=True)
        self.sums = {str(f): "" for f in files}

    def run(self):
        for file in self.sums:
            with open(file, "rb", buffering=0) as stream:
                self.sums[file] = hashlib.file_digest(stream, "sha256").hexdigest()

    def result(self) -> dict[str, str]:
        self.join()
        if not all(self.sums.values()):
            raise ValueError(f"{next(f for f, s in self.sums.items() if not s)}: cannot be read")
        return {"/".join(Path(f).parts[-2:]): s for f, s in self.sums.items()}


def from_hf(
    src: str | Path,
    dst: str | Path | None,
    *,
    dtype=None,
    max_ram: int | None = None,
    dry_run: bool = False,
    towers: Mapping[str, str | Path] | None = None,
    template: str | None = None,
    progress: bool = True,
) -> list[str]:
    """An original's directory `src` -> our model directory `dst`. Returns the mapping's lines.

    `towers`: clip, convnext or llm -> path that overrides the checkpoint's own weights. `template`:
    the chat template to record. Options and errors as of `stream.import_stream`, and
    FileNotFoundError or ValueError for what `src` lacks. Resumable.
    """
    src = Path(src)
    config = hf.read_config(src)
    source, used = with_towers(src, config, towers or {})
    cfg = model_config(config, source, clip_heads(used.get("clip")))
    template = template or TEMPLATES.get(config["model_type"])
    if template is None:
        raise ValueError(
            f"{src / 'config.json'}: model_type {config['model_type']!r} tells no chat template; "
            "give --template"
        )
    tied = cfg.llm.tied_embeddings and HEAD in source
    if tied and not same_tensor(source, HEAD, EMBED):
        raise ValueError(f"{src}: config.json ties {HEAD!r} to {EMBED!r}, but they differ")
    if tied:
        source.extents.pop(HEAD)
    provenance = {
        "source": "huggingface",
        "config.json": dict(config),
        "tied_head_stored": tied,
        "dtype": as_dtype(dtype).name if dtype else None,
        "licence": LICENCE,
    }
    hashes = _Hashes(source.files)

    def close():
        found = provenance | {"sha256": hashes.result()}
        write_description(Path(dst), Checkpoint(cfg, {}, read_tokenizer(src), template, found))

    if not dry_run:
        if dst is None:
            raise ValueError("no destination: give --dst, or --dry-run")
        hashes.start()
    return import_stream(
        source,
        mgm.rules(cfg),
        dst or ".",
        dtype,
        max_ram=max_ram,
        dry_run=dry_run,
        expected={"llm/embed/embedding": (cfg.llm.vocab_size, cfg.llm.dim)},
        tag=json.dumps([provenance, template, cfg.to_dict()]),
        progress=progress,
        close=close,
    )


def to_hf(
    src: str | Path,
    dst: str | Path | None,
    *,
    dtype=None,
    shard_size: int = 5_000_000_000,
    max_ram: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> list[str]:
    """Our model directory `src` -> the original's layout in `dst`. Returns the mapping's lines.

    Writes config.json, sharded safetensors with their index, and the tokenizer's files. Options
    and errors as of `stream.export_stream`. Resumable.
    """
    src = Path(src)
    description = describe(src)
    cfg, provenance = MgmConfig.from_dict(description["model"]), description["provenance"]
    rules = mgm.rules(cfg)
    if cfg.llm.tied_embeddings and provenance.get("tied_head_stored"):
        rules = [*rules, TIED_HEAD]
    config = provenance.get("config.json") or hf_config(cfg)
    if dtype:
        config = config | {"torch_dtype": as_dtype(dtype).name}

    def close():
        write_text(Path(dst) / "config.json", json.dumps(config, indent=2) + "\n")
        model = src / (description["tokenizer"] or "") / "tokenizer.model"
        if description["tokenizer"] and model.is_file():
            options = json.loads((model.parent / "mgm_tokenizer.json").read_text())
            known = {"add_bos_token": options["add_bos"], "legacy": options["legacy"]}
            known |= {"tokenizer_class": "LlamaTokenizer"}
            (Path(dst) / "tokenizer.model").write_bytes(model.read_bytes())
            write_text(Path(dst) / "tokenizer_config.json", json.dumps(known, indent=2) + "\n")

    if dst is None and not dry_run:
        raise ValueError("no destination: give --dst, or --dry-run")
    return export_stream(
        src / "params",
        rules,
        dst or ".",
        dtype,
        shard_size=shard_size,
        max_ram=max_ram,
        dry_run=dry_run,
        tag=json.dumps([config, provenance.get("tied_head_stored")]),
        progress=progress,
        close=close,
    )


def hf_config(cfg: MgmConfig) -> dict:
    """A config.json for a model that never had one, LLaMA family (MGM_SPEC 3.6)."""
    llm = cfg.llm
    return {
        "architectures": ["MGMLlamaForCausalLM"],
        "model_type": "mgm",
        "hidden_act": llm.act,
        "hidden_size": llm.dim,
        "intermediate_size": llm.mlp_dim,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "rms_norm_eps": llm.norm_eps,
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": llm.tied_embeddings,
        "vocab_size": llm.vocab_size,
        "image_aspect_ratio": cfg.image.aspect,
        "image_global": cfg.image.use_global,
        "image_grid": cfg.image.grid,
        "image_size_aux": cfg.image.hr_size,
        "mm_hidden_size": cfg.clip.width,
        "mm_hidden_size_aux": sum(cfg.convnext.widths) if cfg.convnext else None,
        "mm_projector_type": cfg.projector,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": cfg.clip.select_layer,
        "mm_vision_tower": None,
        "mm_vision_tower_aux": None,
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }
