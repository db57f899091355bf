"""`mgm-jax doctor DIR`: what a checkpoint holds, what is wrong with it, why, and what to do.

Works on our directories and on the original's. Nothing but names, shapes and small files is read;
every check runs, whatever the others found. Nothing is decided from the name of a file or folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mgm_jax.checkpoint import CheckpointError, describe
from mgm_jax.convert import hf, plan
from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.families import mgm
from mgm_jax.convert.families.mgm import AUX, CLIP
from mgm_jax.convert.llm_config import family, template_of
from mgm_jax.convert.params import ParamsSource
from mgm_jax.convert.readers import KINDS, NOT_WEIGHTS, file_extents, open_source
from mgm_jax.convert.towers import FOLDERS, HEADS, PREFIX, places, renamed
from mgm_jax.convert.writers import JOURNAL
from mgm_jax.models.config import MgmConfig, read_parts
from mgm_jax.text import get_template, load_tokenizer
from mgm_jax.tree import flatten

CELLS = 8  # HR cells along the side of one LR token, in every Mini-Gemini (MGM_SPEC 1.3 to 1.5)
SOURCES = {  # where the published towers come from (MGM_SPEC 1.3, 1.4)
    "clip": "openai/clip-vit-large-patch14-336",
    "convnext": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
}
LEVELS = ("ok", "warning", "error")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found, and, unless all is well, the likely cause and the remedy."""

    level: str
    what: str
    cause: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        lines = [f"{self.level:7}  {self.what}"]
        lines += [f"{'':9}{k}: {v}" for k, v in (("cause", self.cause), ("do", self.remedy)) if v]
        return "\n".join(lines)


def ok(what) -> Finding:
    return Finding("ok", what)


def diagnose(directory: str | Path) -> list[Finding]:
    """Every finding about a model directory of ours or of the original."""
    directory = Path(directory)
    if not directory.is_dir():
        return [Finding("error", f"{directory} is no directory", "a wrong path", "check the path")]
    has = {file.name for file in directory.iterdir()}
    if JOURNAL in has and not _finished(directory):
        return [
            Finding(
                "error",
                "the conversion that writes this directory is unfinished",
                "it was interrupted, or is still running",
                "run the same `mgm-jax convert` again: it goes on where it stopped",
            )
        ]
    if "mgm.json" in has:
        return list(_ours(directory))
    if "adapter_config.json" in has:
        return list(_adapter(directory))
    if "config.json" in has:
        return list(_original(directory))
    return [
        Finding(
            "error",
            f"{directory} has neither mgm.json nor config.json",
            "not a checkpoint, or config.json was not downloaded",
            "download config.json of the model into it, or give the checkpoint's directory itself",
        )
    ]


def _finished(directory: Path) -> bool:
    try:
        return json.loads((directory / JOURNAL).read_text())["finished"]
    except (ValueError, KeyError, TypeError):
        return False


def _attempt(check: Callable, cause: str, remedy: str) -> Finding | None:
    """Runs a check that raises; its error as a finding."""
    try:
        check()
    except (ValueError, OSError, KeyError) as e:
        return Finding("error", str(e), cause, remedy)
    return None


# ------------------------------------------------------------------------- the original's layout


def _adapter(directory: Path) -> Iterator[Finding]:
    try:
        base = json.loads((directory / "adapter_config.json").read_text()).get(
            "base_model_name_or_path"
        )
    except (ValueError, AttributeError):
        base = None
    yield Finding(
        "error",
        "this is a LoRA adapter (adapter_config.json), not a model",
        f"training saved only what it added to the base model {base!r}",
        "merge it into its base first (PEFT: PeftModel.from_pretrained(base, DIR)"
        ".merge_and_unload().save_pretrained(OUT)); its non_lora_trainables.bin can be converted "
        "alone: mgm-jax convert from-hf --src DIR/non_lora_trainables.bin",
    )


def _original(directory: Path) -> Iterator[Finding]:
    try:
        config = hf.read_config(directory)
        name = family(config, str(directory / "config.json"))
    except ValueError as e:
        yield Finding("error", str(e), "a damaged or foreign config.json", "download it again")
        return
    yield ok(f"config.json: {name}, image {config.get('image_size_aux')} px")
    tensors, damaged = {}, False
    for found in _files(directory):
        if isinstance(found, Finding):
            damaged = True
            yield found
        else:
            tensors |= found
    tensors = {n.removeprefix(PREFIX): x for n, x in tensors.items()}
    if any("lora_" in n for n in tensors):
        yield from _adapter(directory)
        return
    for tower in ("clip", "convnext"):
        yield from _tower(directory, config, tensors, tower, damaged)
    source = TensorSource(tensors, directory)
    rows = _rows(tensors, "model.embed_tokens.weight")
    yield from _vocabulary(directory, config, rows)
    yield from _sizes(config, tensors)
    if not damaged:
        yield from _whole(directory, config, source)


def _files(directory: Path) -> Iterator[Finding | dict]:
    """The tensors of each readable file, and what is wrong with the others."""
    again = "download that file again (compare its size with the one on the hub)"
    kinds = ((k, sorted(f for p in k for f in directory.glob(p))) for k in KINDS)
    kinds = ((k, [f for f in found if f.name not in NOT_WEIGHTS]) for k, found in kinds)
    indexes = {k: sorted(directory.glob(k[0] + ".index.json")) for k in KINDS}
    kind, files = next(((k, f) for k, f in kinds if f or indexes[k]), (KINDS[0], []))
    index = next(iter(indexes[kind]), None)
    if index:
        try:
            where = json.loads(index.read_text())["weight_map"]
            files = sorted({directory / f for f in where.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            yield Finding("error", f"{index}: not an index of shards ({e!r})", "damaged", again)
            where = {}
        for file in files:
            if not file.exists():
                lost = sum(f == file.name for f in where.values())
                yield Finding(
                    "error",
                    f"{index.name} names {file.name}, which is absent ({lost} tensors)",
                    "the download or copy was not complete",
                    f"download {file.name} into {directory}",
                )
        files = [f for f in files if f.exists()]
    if not files and not index:
        yield Finding("error", "no weights (*.safetensors or *.bin)", "not downloaded", again)
    for file in files:
        try:
            yield file_extents(file)
        except (ValueError, OSError) as e:
            yield Finding("error", str(e), "a truncated or damaged file", again)


def _tower(directory, config, tensors, tower: str, damaged: bool) -> Iterator[Finding]:
    """Where a tower's weights are, and whether the folder that config.json names is any use."""
    key, folder = FOLDERS[tower], config.get(FOLDERS[tower])
    inside = any(n.startswith(HEADS[tower]) for n in tensors)
    path = next((p for p in places(directory, folder) if p.exists()), None)
    if inside:
        yield ok(f"{tower} tower: inside the checkpoint")
    if path is None and folder:
        stale = f"config.json's {key} is {folder!r}, which does not exist"
        get = f"download {SOURCES[tower]} to {directory / folder}, or edit {key}"
        if inside or damaged:
            yield Finding(
                "warning",
                f"{stale} (here the weights {'inside' if inside else 'in other shards'} serve)",
                "a stale path of the machine that trained it; the original code needs the folder",
                get,
            )
        else:
            yield Finding(
                "error",
                f"{tower} tower: no weights inside, and {stale}",
                "a stale path of the machine that trained it, and the tower was never saved",
                f"{get}; or convert with --tower {tower}=PATH",
            )
    if path is None and not folder and not inside and tower == "clip" and not damaged:
        yield Finding(
            "error",
            f"{tower} tower: no weights inside, and config.json names no {key}",
            "the tower was left out when the checkpoint was saved",
            f"convert with --tower {tower}=PATH ({SOURCES[tower]})",
        )
    if path is None:
        return
    if not inside and not damaged:
        try:
            tensors |= renamed(open_source(path), tower)
            yield ok(f"{tower} tower: from {path}")
        except (ValueError, OSError) as e:
            yield Finding(
                "error", str(e), "an empty or foreign folder", f"download {SOURCES[tower]}"
            )
    if tower == "clip" and path.is_dir() and not (path / "preprocessor_config.json").exists():
        yield Finding(
            "warning",
            f"{path} has no preprocessor_config.json",
            "only the weights were downloaded; the original cannot start without it (here "
            "Mini-Gemini's fixed mean, std and size are used)",
            f"download preprocessor_config.json of {SOURCES['clip']} into it",
        )
    if tower == "clip" and path.is_dir():
        yield from _clip_folder(path, tensors)


def _clip_folder(path: Path, tensors) -> Iterator[Finding]:
    """The folder's own files against the size that the weights have."""
    size = _clip_size(tensors)
    for file in ("config.json", "preprocessor_config.json"):
        try:
            values = json.loads((path / file).read_text())
            values = values.get("vision_config", values)
            said = values.get("image_size") or values.get("crop_size")
            said = said.get("height") if isinstance(said, dict) else said
        except FileNotFoundError:
            continue
        except (ValueError, AttributeError) as e:
            yield Finding("error", f"{path / file}: not JSON ({e})", "damaged", "download it again")
            continue
        if said and size and said != size:
            yield Finding(
                "error",
                f"CLIP's weights are for {size} px pictures, but {path / file} says {said}",
                f"a {size} px CLIP in a {said} px slot: another CLIP's weights or folder",
                f"use {SOURCES['clip']} for both (--tower clip=PATH)",
            )


def _clip_size(tensors) -> int | None:
    positions = _rows(tensors, f"{CLIP}embeddings.position_embedding.weight")
    patch = tensors.get(f"{CLIP}embeddings.patch_embedding.weight")
    return math.isqrt(positions - 1) * patch.shape[-1] if positions and patch else None


def _rows(tensors, name) -> int | None:
    return tensors[name].shape[0] if name in tensors else None


def _sizes(config, tensors) -> Iterator[Finding]:
    """CLIP's size against the HR pictures' (MGM_SPEC 4)."""
    size, hr, g = _clip_size(tensors), config.get("image_size_aux"), config.get("image_grid", 1)
    patch, stem = (
        tensors[n].shape[-1] if n in tensors else None
        for n in (f"{CLIP}embeddings.patch_embedding.weight", f"{AUX}vision_stem.0.weight")
    )
    if not (size and hr and stem and g):
        return
    yield from judge_sizes(size, patch, hr, stem, g, "error")


def judge_sizes(size, patch, hr, stem, g, level) -> Iterator[Finding]:
    """LR and HR picture sizes that fit each other: 8 x 8 HR cells for each LR token."""
    tokens, unit = size // patch * g, stem * CELLS
    if hr == tokens * unit:
        yield ok(f"sizes: LR {size} px x {g}, HR {hr} px: {CELLS} x {CELLS} HR cells a token")
        return
    fits = hr % (unit * g) == 0
    wanted = hr // (unit * g) * patch
    if g > 1 and hr < tokens * unit:
        yield Finding(
            level,
            f"an HD config (image_grid {g}: {g} x {g} crops of {size} px) with image_size_aux {hr}",
            f"image_size_aux is that of the model without HD; {g} x {g} crops need {tokens * unit}",
            f'set "image_size_aux": {tokens * unit} in config.json, or "image_grid": 1 and '
            '"image_global": false',
        )
    else:
        yield Finding(
            level,
            f"CLIP's position embedding is for {size} px pictures, but image_size_aux {hr} goes "
            f"with a {wanted if fits else 'another'} px CLIP",
            f"a {size} px CLIP in a {wanted if fits else 'larger'} px slot (the folder or --tower "
            "holds another CLIP than the model was trained with)",
            f"use {SOURCES['clip']}, or the CLIP of the training run (--tower clip=PATH)",
        )


def _vocabulary(directory, config, rows: int | None) -> Iterator[Finding]:
    size = config.get("vocab_size")
    if rows is not None and rows != size:
        yield Finding(
            "error",
            f"model.embed_tokens.weight has {rows} rows, but config.json's vocab_size is {size}",
            "tokens were added (mm_use_im_start_end, a pad token) or cut without saving the config",
            f'set "vocab_size": {rows} in config.json, if the tokenizer has that many tokens',
        )
    try:
        tokenizer = hf.read_tokenizer(directory)
    except (ValueError, OSError, KeyError) as e:
        yield Finding("error", str(e), "a damaged tokenizer file", "download it again")
        return
    if tokenizer is None:
        yield Finding(
            "error",
            "no tokenizer (neither tokenizer.model nor tokenizer.json)",
            "only the weights were downloaded or saved",
            "copy tokenizer.model (or tokenizer.json) and tokenizer_config.json of the language "
            "model that it was trained from into the directory",
        )
        return
    yield from _pieces(tokenizer, rows or size)


def _pieces(tokenizer, rows: int | None) -> Iterator[Finding]:
    if rows and tokenizer.vocab_size > rows:
        yield Finding(
            "error",
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {rows} rows",
            "another model's tokenizer, or tokens added to it alone",
            "use the tokenizer that the model was trained with",
        )
    else:
        yield ok(f"tokenizer: {tokenizer.vocab_size} tokens, embedding of {rows} rows")


def _whole(directory, config, source: TensorSource) -> Iterator[Finding]:
    """Every name and shape against the model that config.json and the tensors describe."""
    ask = "compare config.json and the weights with the published ones; `mgm-jax convert inspect`"
    try:
        cfg = hf.mgm_config(directory, config, source)
        template = template_of(config, str(directory / "config.json"))
    except (ValueError, OSError) as e:
        yield Finding("error", str(e), "config.json and the weights disagree, or one lacks it", ask)
        return
    if cfg.llm.tied_embeddings:
        source.extents.pop("lm_head.weight", None)
    yield from _shapes(cfg, lambda rules: plan.layouts(_checked(source, rules), rules, None), ask)
    yield ok(f"template: {template}")


def _checked(source, rules) -> TensorSource:
    names = {p.theirs: p.rule.ours for p in plan.pairs(rules)}
    plan.unmatched(source, names, plan.IGNORABLE)
    return source


def _shapes(cfg: MgmConfig, layouts: Callable, remedy: str) -> Iterator[Finding]:
    """Names and shapes of arrays (`layouts(rules)`, by our names) against the module's own."""
    from mgm_jax.train import abstract_model

    expected = {n: s.shape for n, s in flatten(abstract_model(cfg)[2]).items()}
    try:
        found = layouts(mgm.rules(cfg))
    except (ValueError, KeyError) as e:
        yield Finding("error", str(e), "another model's weights, or an incomplete set", remedy)
        return
    wrong = [
        f"{n}: found {found[n].shape if n in found else 'nothing'}, expected {s}"
        for n, s in expected.items()
        if n not in found or tuple(found[n].shape) != tuple(s)
    ]
    if wrong:
        what = "\n         ".join([f"{len(wrong)} arrays do not fit the config:", *wrong[:10]])
        yield Finding("error", what, "config and weights are of different models", remedy)
    else:
        count = sum(math.prod(s) for s in expected.values())
        kinds = sorted({layout.dtype.name for layout in found.values()})
        yield ok(f"weights: {count:,} parameters ({', '.join(kinds)}), every name and shape fits")


# ------------------------------------------------------------------------------------- our layout


def _ours(directory: Path) -> Iterator[Finding]:
    again = "write it again (mgm-jax convert, or the training run that made it)"
    try:
        description = describe(directory)
        config = read_parts(description["model"])
    except ValueError as e:
        yield Finding("error", str(e), "a damaged file, or another version's", again)
        return
    whole = isinstance(config, MgmConfig)
    if whole:
        yield ok("mgm.json: a whole model")
    else:
        yield Finding(
            "warning",
            f"mgm.json: holds only {', '.join(config)}",
            "base weights or what stage 1 trains",
            "name it in a training run's init; `load` and `chat` need a whole model",
        )
    llm = config.llm if whole else config.get("llm")
    if llm:
        bad = _attempt(
            lambda: get_template(description["template"]), "a wrong edit of mgm.json", again
        )
        yield bad or ok(f"template: {description['template']}")
        yield from _our_tokenizer(directory, description["tokenizer"], llm.vocab_size)
    try:
        source = ParamsSource(directory / "params")
    except CheckpointError as e:
        yield Finding("error", str(e), "params/ is damaged or was not copied whole", again)
        return
    if whole:
        image, clip = config.image, config.clip
        if config.convnext:
            stem = config.convnext.patch_size
            sizes = (clip.image_size, clip.patch_size, image.hr_size, stem, image.grid)
            yield from judge_sizes(*sizes, "warning")
        yield from _shapes(config, lambda rules: source.extents, again)
    else:
        expected = {rule.ours for rule in mgm.rules(config)}
        if lost := sorted(expected - set(source)):
            yield Finding("error", f"params/ lacks {lost[0]}", "an incomplete copy", again)


def _our_tokenizer(directory, folder, rows) -> Iterator[Finding]:
    if not folder:
        yield Finding(
            "error",
            "no tokenizer",
            "the source of the conversion had none",
            "put its tokenizer files beside the source's weights, and convert again",
        )
        return
    try:
        tokenizer = load_tokenizer(directory / folder)
    except (ValueError, OSError, KeyError) as e:
        yield Finding("error", str(e), "tokenizer/ is damaged or was not copied", "copy it again")
        return
    yield from _pieces(tokenizer, rows)


# ----------------------------------------------------------------------------------- command line


def main(args) -> None:
    """Prints the findings, and one line of JSON; leaves with 1 if there is an error."""
    findings = diagnose(args.directory)
    for level in LEVELS:
        for finding in (f for f in findings if f.level == level):
            print(finding)
    result = {level: sum(f.level == level for f in findings) for level in LEVELS}
    line = json.dumps(result | {"findings": [dataclasses.asdict(f) for f in findings]})
    if args.json:
        Path(args.json).write_text(line + "\n")
    print(line)
    if result["error"]:
        sys.exit(1)
