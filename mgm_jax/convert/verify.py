"""`mgm-jax convert verify A B`: do two models compute the same, module by module?

Both run in float32 on the same fixed prompts and pictures (`convert.probes`), one after the other;
their weights are compared tensor by tensor from disk. With PyTorch as the reference, A's side is
run by independent modules (`convert.torch_reference`).
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mgm_jax.checkpoint import describe, rewrite_provenance
from mgm_jax.convert.probes import Probe, probes, views
from mgm_jax.convert.weights import StoredModel, open_model
from mgm_jax.text import IGNORE
from mgm_jax.tree import flatten

TOLERANCE = 1e-4  # of features, times max(1, the root mean square of the reference)
LOGITS = 2  # times that for logits
MODULES = {  # key of the report -> what it is called in the table
    "clip_features": "CLIP features",
    "convnext_map": "ConvNeXt map",
    "mined": "mined",
    "tokens": "tokens (CLIP + mined)",
    "image_features": "projector output",
    "inputs_embeds": "merged embeddings",
    "logits": "logits",
}
# Differences of the config that leave every tensor's shape as it is (flat names).
HARMLESS = (
    *("clip/norm_eps", "clip/act", "clip/heads", "clip/select_layer", "convnext/norm_eps"),
    *("mining_eps", "llm/act", "llm/norm_eps", "llm/rope_theta", "llm/zero_centred_norm"),
    *("llm/embed_scale", "llm/experts/per_token", "llm/experts/router_loss"),
    *("image/aspect", "image/mean", "image/std", "image/hr_mean", "image/hr_std"),
)
BLOCK = 1 << 22  # elements compared at a time, in float64


@dataclasses.dataclass
class Difference:
    """Running sums over pairs of arrays of one shape, from which the figures come."""

    max_abs: float = 0.0
    count: int = 0
    _sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(4))

    def add(self, reference: np.ndarray, found: np.ndarray) -> None:
        if reference.shape != found.shape:
            raise ValueError(f"found {found.shape}, expected {reference.shape}")
        reference, found = reference.reshape(-1), found.reshape(-1)
        for i in range(0, reference.size, BLOCK):
            a, b = (x[i : i + BLOCK].astype(np.float64) for x in (reference, found))
            d = b - a
            # np.maximum hands NaN on: a model that gives one is never within a tolerance.
            self.max_abs = float(np.maximum(self.max_abs, np.abs(d).max()))
            self.count += a.size
            self._sums += (a @ a, b @ b, a @ b, d @ d)

    @property
    def scale(self) -> float:
        """Root mean square of the reference."""
        return math.sqrt(self._sums[0] / self.count) if self.count else 0.0

    @property
    def relative(self) -> float:
        """Norm of the difference by the norm of the reference."""
        aa, _, _, dd = self._sums
        return math.sqrt(dd / aa) if aa else (0.0 if dd == 0 else math.inf)

    @property
    def cosine(self) -> float:
        aa, bb, ab, dd = self._sums
        return float(ab / math.sqrt(aa * bb)) if aa and bb else float(dd == 0)

    def figures(self, tolerance: float) -> dict[str, Any]:
        """As they stand in the report; None for what is not finite."""
        limit = tolerance * max(1.0, self.scale)
        values = {
            "max_abs": self.max_abs,
            "relative": self.relative,
            "cosine": self.cosine,
            "scale": self.scale,
            "limit": limit,
        }
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        return finite | {"ok": bool(self.max_abs <= limit)}


# --- one side ---

Arrays = dict[str, list[np.ndarray]]  # module -> of each picture, or of each probe, in order


@functools.partial(jax.jit, static_argnames="module")
def _forward(params, batch, *, module):
    return module.apply({"params": params}, batch)


def run_ours(directory: str | Path, used: Sequence[Probe], pictures) -> Arrays:
    """Loads a model, runs it on the probes and pictures (lr, hr), and frees it.

    Every probe is padded to the same length, so that one compilation serves all.
    """
    from mgm_jax import api, parity

    model = api.load(directory, dtype="float32")
    lr, hr = parity.check_pictures(model.config, *pictures)
    tokens, out = model.encode_images(lr, hr)
    out = out | {"image_features": tokens}
    arrays: Arrays = {k: [np.asarray(v, np.float32)] for k, v in out.items()}
    arrays |= {"inputs_embeds": [], "logits": []}
    features = parity.tower_features(model.params, lr, hr, module=model.module)
    features = jax.tree.map(lambda f: f[None], features)
    ids = [np.array(probe.ids) for probe in used]
    batches = [
        parity.make_batch(model.config, [row], [np.full_like(row, IGNORE)], len(hr), None)
        for row in ids
    ]
    longest = max(batch["tokens"].shape[1] for batch in batches)
    for batch in batches:
        length = int((batch["segments"] > 0).sum())
        for name, value in batch.items():
            room = [(0, 0), (0, longest - value.shape[1])]
            batch[name] = np.pad(value, room, constant_values=-1 * (name == "visual_index"))
        batch["features"] = features
        logits, out = _forward(model.params, batch, module=model.module)
        arrays["inputs_embeds"].append(np.asarray(out["inputs_embeds"][0, :length], np.float32))
        arrays["logits"].append(np.asarray(logits[0, :length], np.float32))
    del model, features, batches, batch, logits, out
    gc.collect()
    return arrays


# --- both ---


def config_differences(a: StoredModel, b: StoredModel) -> list[str]:
    """Lines `key: of A, of B`. ValueError if the two cannot be compared, with all that differs."""
    x, y = (flatten(m.config.to_dict()) | {"template": m.template} for m in (a, b))
    names = [k for k in sorted(x.keys() | y.keys()) if x.get(k) != y.get(k)]
    lines = {k: f"{k.replace('/', '.')}: {x.get(k)!r} in A, {y.get(k)!r} in B" for k in names}
    if [k for k in names if k not in (*HARMLESS, "template")]:
        raise ValueError(
            "\n  ".join(
                [
                    f"{a.directory} and {b.directory} are models of different shapes:",
                    *lines.values(),
                ]
            )
        )
    return list(lines.values())


def compare_weights(a: StoredModel, b: StoredModel, worst: int = 5) -> dict[str, Any]:
    """Tensors of two models, read one by one from disk and compared in float32.

    count, different (values), other_dtype, only_in_a, only_in_b (names), and the `worst` by their
    largest difference.
    """
    found, other_dtype = [], 0
    both = [name for name in a.names if name in set(b.names)]
    for name in both:
        x, y = a.read(name), b.read(name)
        other_dtype += x.dtype != y.dtype
        if x.shape != y.shape:
            raise ValueError(f"{name}: {list(x.shape)} in A, {list(y.shape)} in B")
        difference = Difference()
        difference.add(x.astype(np.float32), y.astype(np.float32))
        if not difference.max_abs == 0:
            figures = difference.figures(0.0)
            found.append({"name": name} | {k: figures[k] for k in ("max_abs", "relative")})
    found.sort(key=lambda f: math.inf if f["max_abs"] is None else f["max_abs"], reverse=True)
    return {
        "count": len(both),
        "different": len(found),
        "other_dtype": int(other_dtype),
        "only_in_a": sorted(set(a.names) - set(b.names)),
        "only_in_b": sorted(set(b.names) - set(a.names)),
        "worst": found[:worst],
    }


def compare_runs(reference: Arrays, found: Arrays, used: Sequence[Probe], tolerance: float):
    """-> (module -> figures over all pictures and probes, case -> top-1 agreement)."""
    modules, cases = {}, {}
    for key in MODULES:
        pair = [run.get(key, []) for run in (reference, found)]
        if not any(pair):
            continue  # an LR-only model has no map and mines nothing
        difference = Difference()
        for x, y in zip(*pair, strict=True):
            difference.add(x, y)
        modules[key] = difference.figures(tolerance * (LOGITS if key == "logits" else 1))
    for probe, x, y in zip(used, reference["logits"], found["logits"], strict=True):
        agree = x.argmax(-1) == y.argmax(-1)
        cases[probe.case] = {"positions": len(agree), "agree": int(agree.sum())}
    return modules, cases


def identity(model: StoredModel) -> dict[str, Any]:
    """What a report says of a model: its kind and the sha256 of its source's files, or its own."""
    known = model.provenance.get("sha256")
    if not known:
        from mgm_jax.convert.checkpoints import Hashes

        hashes = Hashes(model.files)
        hashes.run()
        known = {os.path.relpath(f, model.directory): s for f, s in hashes.sums.items()}
    return {"kind": "ours" if model.ours else "huggingface", "sha256": known}


def verify(
    a: str | Path, b: str | Path | None = None, *, against: str | None = None, tolerance=TOLERANCE
) -> dict[str, Any]:
    """The report (a JSON object) of B's parity with A; with `against="torch"` B may be left out.

    Each of the two is a directory of ours or of the original. Features are within tolerance when
    max-abs <= `tolerance` * max(1, root mean square of the reference), logits at twice that; `ok`
    when all are, and when both tokenizers give the same prompts. ValueError (CheckpointError) for a
    directory that cannot be loaded, and for models of different shapes.
    """
    if against not in (None, "torch"):
        raise ValueError(f"against is {against!r}, expected 'torch'")
    if b is None and not against:
        raise ValueError("verify needs two models, or one --against torch")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance is {tolerance}, expected a number of at least 0")
    first = open_model(a)
    second = open_model(b) if b is not None else first
    differences = config_differences(first, second)
    prompts = [
        None if m.tokenizer is None else probes(m.config, m.tokenizer, m.template)
        for m in (first, second)
    ]
    same_prompts = None in prompts or prompts[0] == prompts[1]
    if not same_prompts:
        differences.append("tokenizer: the two give different ids for the same prompts")
    elif (prompts[0] is None) != (prompts[1] is None):
        differences.append(f"tokenizer: none in {'A' if prompts[0] is None else 'B'}")
    used, pictures = prompts[0] or probes(first.config, None, first.template), views(first.config)
    if against:
        from mgm_jax.convert.torch_reference import run_torch

        reference = run_torch(first, used, pictures)
    else:
        reference = run_ours(a, used, pictures)
    found = run_ours(second.directory, used, pictures)
    modules, cases = compare_runs(reference, found, used, tolerance)
    positions = sum(c["positions"] for c in cases.values())
    return {
        "command": "convert verify",
        "a": str(a),
        "b": str(second.directory),
        "against": against,
        "source": identity(first),
        "tolerance": {"features": tolerance, "logits": tolerance * LOGITS},
        "ok": same_prompts and all(m["ok"] for m in modules.values()),
        "modules": modules,
        "top1": sum(c["agree"] for c in cases.values()) / positions,
        "cases": cases,
        "prompts": "fixed ids" if prompts[0] is None else "tokenizer",
        "config": differences,
        "weights": compare_weights(first, second) if b is not None else None,
    }


# --- output ---


def table(report: Mapping[str, Any]) -> Iterable[str]:
    """The report as lines of text."""

    def number(value, form="9.2e"):
        return "not finite".rjust(10) if value is None else format(value, form).rjust(10)

    reference = f"{report['a']} in PyTorch" if report["against"] else report["a"]
    yield f"A  {reference}"
    yield f"B  {report['b']}"
    yield f"{'module':24}{'max-abs':>10}{'limit':>10}{'relative':>10}{'cosine':>12}"
    for key, m in report["modules"].items():
        line = f"{MODULES[key]:24}{number(m['max_abs'])}{number(m['limit'])}{number(m['relative'])}"
        yield f"{line}{number(m['cosine'], '.8f'):>12}" + ("" if m["ok"] else "  beyond")
    for case, c in report["cases"].items():
        yield f"top-1 of logits, {case}: {c['agree']} of {c['positions']} positions agree"
    yield f"prompts: {report['prompts']}"
    if weights := report["weights"]:
        yield f"weights: {weights['different']} of {weights['count']} tensors differ" + (
            f", {weights['other_dtype']} have another dtype" if weights["other_dtype"] else ""
        )
        for w in weights["worst"]:
            yield f"  {w['name']}: max-abs {number(w['max_abs']).strip()}, relative " + (
                number(w["relative"]).strip()
            )
        for side in ("a", "b"):
            for name in weights[f"only_in_{side}"]:
                yield f"  {name}: only in {side.upper()}"
    for line in report["config"]:
        yield f"differs: {line}"
    yield "within tolerance" if report["ok"] else "NOT within tolerance"


def embed(report: Mapping[str, Any]) -> None:
    """Puts the summary into the provenance of the checked directory, which is one of ours."""
    kept = ("against", "source", "tolerance", "ok", "modules", "top1", "prompts", "config")
    summary = {key: report[key] for key in kept}
    if weights := report["weights"]:
        summary["weights"] = {k: weights[k] for k in ("count", "different", "other_dtype")}
    known = describe(report["b"])["provenance"]
    rewrite_provenance(report["b"], {**known, "verify": summary})


def main(args) -> None:
    """`args`: a, b, against, tolerance, json, html. Exit code 1 when not within tolerance."""
    from mgm_jax.convert.verify_page import page
    from mgm_jax.convert.writers import write_text

    report = verify(args.a, args.b, against=args.against, tolerance=args.tolerance)
    print("\n".join(table(report)))
    ours = (Path(report["b"]) / "mgm.json").exists()
    html = args.html or (Path(report["b"]) / "verify.html" if ours else None)
    line = json.dumps(report)
    if ours:
        embed(report)
    if html:
        write_text(Path(html), page(report))
        print(f"page: {html}")
    if args.json:
        write_text(Path(args.json), line + "\n")
    print(line)
    if not report["ok"]:
        sys.exit(1)
