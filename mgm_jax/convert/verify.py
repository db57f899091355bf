"""`mgm-jax convert verify A B`: how far two checkpoints' modules are apart, on fixed inputs.

Both run in float32 on the same pictures (made here from a seed) and the same token ids, module by
module; so the first row that is off names the module to look at. With `against="torch"` the second
one is PyTorch's (`convert.torch_reference`) with the first one's weights.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mgm_jax.checkpoint import describe, rewrite_provenance
from mgm_jax.tree import flatten

# Largest absolute error of a module's output, times its root mean square where that is above 1;
# logits are given twice that.
TOLERANCE = 1e-4
QUESTIONS = ("What is in this picture?", "List three facts about the sea.", "Compare the pictures.")
ANSWER = "A small boat on blue water, and a lighthouse behind it."
CASES = {"one_picture": 1, "text_only": 0, "two_pictures": 2}
MODULES = ("clip_features", "convnext_map", "mined", "tokens", "image_features")


@dataclasses.dataclass(frozen=True)
class Row:
    """One module's output of both sides: largest absolute and relative error, cosine.

    `top1` is the share of positions whose likeliest token agrees (logits only).
    """

    module: str
    max_abs: float
    relative: float
    cosine: float
    top1: float | None
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(self.max_abs <= self.tolerance)


def pictures(count: int = 2) -> list[Image.Image]:
    """Fixed pictures of unlike shapes: smooth gradients, sharp edges and noise."""
    made = []
    for i, (width, height) in enumerate([(480, 360), (300, 500), (256, 256)][:count]):
        rng = np.random.default_rng(i)
        y, x = np.mgrid[:height, :width]
        base = np.stack([x * 255 / width, y * 255 / height, (x + y) % 64 * 4], axis=-1)
        base[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 255, 3)
        noise = rng.normal(0, 12, base.shape)
        made.append(Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)))
    return made


def prompts(model) -> dict[str, tuple[list[int], int]]:
    """case -> (ids with -200, pictures): by the model's own template and tokenizer, if it has them;
    otherwise (or if they do not fit its vocabulary) by fixed ids."""
    from mgm_jax.text import encode_record

    found, vocabulary = {}, model.config.llm.vocab_size
    for i, (case, count) in enumerate(CASES.items()):
        ids = [(7 * n + 11 * i) % (vocabulary - 3) + 3 for n in range(40)]
        for k in range(count):
            ids.insert(3 + 5 * k, -200)
        if model.tokenizer is not None and model.tokenizer.vocab_size <= vocabulary:
            asked = "<image>\n" * count + QUESTIONS[i]
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": ANSWER}]
            names = {0: {}, 1: {"image": "a"}, 2: {"image": ["a", "b"]}}[count]
            record = {"conversations": turns} | names
            ids, _ = encode_record(record, model.template, model.tokenizer, None)
        found[case] = (list(ids), count)
    return found


def outputs(model, cases, views) -> dict[str, np.ndarray]:
    """Every module's output: `model` has `encode_images` and `forward_ids`."""
    lr, hr = views
    found = {}
    for i in range(len(hr)):
        features, middle = model.encode_images(lr[i : i + 1], hr[i : i + 1])
        middle = middle | {"image_features": features}
        found |= {f"{k} of picture {i + 1}": middle[k] for k in MODULES if k in middle}
    for case, (ids, count) in cases.items():
        shown = (lr[:count], hr[:count]) if count else (None, None)
        out = model.forward_ids([ids], *shown)
        found |= {f"{k}: {case}": out[k] for k in ("inputs_embeds", "logits")}
    return found


def compare(a: dict, b: dict, tolerance: float = TOLERANCE) -> list[Row]:
    """Rows of two `outputs`; ValueError if their shapes differ: these are different models."""
    rows = []
    for name, x in a.items():
        y = b.get(name)
        if y is None or x.shape != y.shape:
            raise ValueError(
                f"{name} is {x.shape} in the first and {y.shape if y is not None else 'absent'} in "
                "the second: they are different models"
            )
        x, y = (v.astype(np.float64) for v in (x, y))
        norm = np.linalg.norm(x) * np.linalg.norm(y)
        is_logits = name.startswith("logits")
        rows.append(
            Row(
                name,
                float(np.abs(x - y).max()),
                float(np.linalg.norm(x - y) / max(np.linalg.norm(x), 1e-30)),
                float((x * y).sum() / norm) if norm else float(np.array_equal(x, y)),
                float((x.argmax(-1) == y.argmax(-1)).mean()) if is_logits else None,
                float(tolerance * (2 if is_logits else 1) * max(1, np.sqrt((x * x).mean()))),
            )
        )
    return rows


def differing(a: dict, b: dict) -> list[tuple[str, float]]:
    """(name, largest difference) of parameters that are not bit-equal, the worst first."""
    found = []
    for name, x in a.items():
        x, y = np.asarray(x), np.asarray(b[name])
        if x.dtype != y.dtype or not np.array_equal(x.view(np.uint8), y.view(np.uint8)):
            error = np.abs(x.astype(np.float32) - y.astype(np.float32)).max()
            found.append((name, float(error)))
    return sorted(found, key=lambda pair: -pair[1])


def verify(
    a: str | Path, b: str | Path | None, *, against: str | None = None, tolerance: float = TOLERANCE
) -> dict:
    """The report: `rows`, `passed`, what differs in the configuration and the parameters.

    `b` None with `against="torch"`. One model is in memory at a time, but for its parameters.
    ValueError for different models or a missing side.
    """
    from mgm_jax import api
    from mgm_jax.data.images import preprocess

    if (b is None) == (against is None):
        raise ValueError("give either a second checkpoint or --against torch")
    first = api.load(a, dtype="float32")
    cases, spec = prompts(first), first.config.image
    views = tuple(np.stack(v) for v in zip(*(preprocess(p, spec) for p in pictures()), strict=True))
    found = outputs(first, cases, views)
    params = {n: np.asarray(p) for n, p in flatten(first.params).items()}
    config, template = first.config, first.template
    report = {"a": _name(a), "b": _name(b) if b is not None else "PyTorch (transformers)"}
    same = {"config": {}, "parameters": []}
    del first
    if b is None:
        from mgm_jax.convert.families import mgm
        from mgm_jax.convert.rules import export_params
        from mgm_jax.convert.torch_reference import TorchMgm

        second = TorchMgm(config, dict(export_params(params, mgm.rules(config))))
    else:
        second = api.load(b, dtype="float32")
        same["config"] = _config_diff(config, second.config)
        if template != second.template:
            same["config"]["template"] = [template, second.template]
        theirs = flatten(second.params)
        if params.keys() != theirs.keys():
            name = sorted(params.keys() ^ theirs.keys())[0]
            raise ValueError(f"{name} is in one of {a} and {b} only: they are different models")
        if wrong := [n for n, x in params.items() if x.shape != theirs[n].shape]:
            shapes = params[wrong[0]].shape, theirs[wrong[0]].shape
            raise ValueError(f"{wrong[0]} is {shapes[0]} in {a} and {shapes[1]} in {b}")
        same["parameters"] = differing(params, theirs)[:20]
        own = prompts(second)
        if own != cases:
            same["config"]["token ids of the prompts"] = ["of the first, used for both", "differ"]
    rows = compare(found, outputs(second, cases, views), tolerance)
    return report | {
        "passed": all(row.passed for row in rows),
        "config_differs": same["config"],
        "parameters_differ": same["parameters"],
        "rows": [dataclasses.asdict(row) | {"passed": row.passed} for row in rows],
    }


def _name(directory) -> str:
    """The last parts of a path: enough to tell two apart, and no machine's whole path."""
    return "/".join(Path(directory).absolute().parts[-2:])


def _config_diff(a, b) -> dict:
    x, y = (flatten(c.to_dict()) for c in (a, b))
    return {k: [x.get(k), y.get(k)] for k in sorted(x.keys() | y.keys()) if x.get(k) != y.get(k)}


def lines(report: dict) -> list[str]:
    """The report as a table for people."""
    out = [f"{report['a']} against {report['b']}"]
    out += [f"config: {k} is {x!r}, and {y!r}" for k, (x, y) in report["config_differs"].items()]
    out += [f"parameter {n} differs by {e:.3g}" for n, e in report["parameters_differ"]]
    out.append(f"{'module':32} {'max abs':>10} {'relative':>10} {'cosine':>12} {'top-1':>7}")
    for row in report["rows"]:
        top = f"{row['top1']:7.1%}" if row["top1"] is not None else " " * 7
        flag = "" if row["passed"] else f"  > {row['tolerance']:g}"
        out.append(
            f"{row['module']:32} {row['max_abs']:10.3g} {row['relative']:10.3g} "
            f"{row['cosine']:12.9f} {top}{flag}"
        )
    return [*out, "they agree" if report["passed"] else "they DIFFER"]


PAGE = """<!doctype html><meta charset="utf-8"><title>Parity report</title>
<style>body{{font:15px/1.5 system-ui;margin:2em auto;max-width:60em}}
table{{border-collapse:collapse}} td,th{{padding:.2em .8em;text-align:right}}
td,th{{border-bottom:1px solid #ddd}} td:first-child,th:first-child{{text-align:left}}
.no{{background:#fdd}} .yes{{background:#efe}}</style>
<h1>{a} against {b}</h1><p><b>{verdict}</b></p>{notes}
<table><tr><th>module<th>max abs<th>relative<th>cosine<th>top-1<th>tolerance</tr>{rows}</table>
"""


def page(report: dict) -> str:
    """The report as one HTML page without scripts or outside files."""
    from html import escape

    rows = "".join(
        f'<tr class="{"yes" if r["passed"] else "no"}"><td>{escape(r["module"])}'
        f"<td>{r['max_abs']:.3g}<td>{r['relative']:.3g}<td>{r['cosine']:.9f}"
        f"<td>{'' if r['top1'] is None else format(r['top1'], '.1%')}<td>{r['tolerance']:g}</tr>"
        for r in report["rows"]
    )
    notes = [f"config: {k} is {x!r}, and {y!r}" for k, (x, y) in report["config_differs"].items()]
    notes += [f"parameter {n} differs by {e:.3g}" for n, e in report["parameters_differ"]]
    return PAGE.format(
        a=escape(report["a"]),
        b=escape(report["b"]),
        verdict="they agree" if report["passed"] else "they differ",
        notes="".join(f"<p>{escape(note)}</p>" for note in notes),
        rows=rows,
    )


def main(args) -> None:
    """Prints the table and one line of JSON; leaves with 1 if they differ."""
    report = verify(args.a, args.b, against=args.against, tolerance=args.tolerance)
    print("\n".join(lines(report)))
    line = json.dumps(report)
    if args.json:
        Path(args.json).write_text(line + "\n")
    if args.html:
        Path(args.html).write_text(page(report))
    checked = Path(args.b or args.a)
    if (checked / "mgm.json").exists():
        keep = {k: report[k] for k in ("a", "b", "passed", "rows")}
        rewrite_provenance(checked, describe(checked)["provenance"] | {"verify": keep})
    print(line)
    if not report["passed"]:
        sys.exit(1)
