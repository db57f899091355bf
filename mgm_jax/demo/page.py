"""The demo's page: pictures, answers of both arms, and the mining weights over the HR picture."""

from __future__ import annotations

import functools
import html
import json
import os
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from mgm_jax.api import LoadedModel, load
from mgm_jax.data.images import load_image, to_hr
from mgm_jax.models.mgm import Mgm
from mgm_jax.ops.views import views

ARMS = ("mining", "lr_only")
SCALE = 2  # of a picture on the page
ROWS = (  # (key of the summary, what it is)
    ("digit_accuracy", "digit, with mining"),
    ("digit_accuracy_lr_only", "digit, low resolution only (same visual tokens)"),
    ("lr_ceiling", "ceiling: a classifier of perfectly cropped low-resolution digits"),
    ("colour_accuracy", "colour, with mining"),
    ("digit_accuracy_new_photos", "digit, with mining, on photographs never seen"),
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1250px; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .3em .8em; text-align: left }
tr { border-bottom: 1px solid #ddd } img { display: block; width: 100% }
.right { color: #0a7d32 } .wrong { color: #b3261e } p.q { margin: .6em 0 0 }
.scene { display: grid; grid-template-columns: 840px 1fr; gap: 1.5em; margin: 1.5em 0 }
"""


def table(summary: dict) -> str:
    """The accuracies as lines of text."""
    return "\n".join(f"{summary[key]:7.1%}  {what}" for key, what in ROWS)


@functools.partial(jax.jit, static_argnames="module")
def look(module: Mgm, params, pictures):
    """uint8 [P, H, W, 3] -> (LR views [P, h, h, 3], mining weights [P, N, S])."""
    lr, hr = views(pictures, module.cfg.image)
    features = module.apply({"params": params}, lr, hr, method="encode_views")
    _, out = module.apply({"params": params}, features, method="visual_tokens")
    return lr, out["mining_weights"]


def mining_map(weights: np.ndarray, grid: int) -> np.ndarray:
    """Weights [N, S] of grid x grid tokens -> their map [h, w], 1 at each region's peak.

    Each low-resolution token spreads weights that sum to one over its own region.
    """
    side = int(weights.shape[1] ** 0.5)
    found = weights / weights.max(1, keepdims=True)
    found = found.reshape(grid, grid, side, side).transpose(0, 2, 1, 3)
    return found.reshape(grid * side, grid * side)


def overlay(picture: np.ndarray, heat: np.ndarray, box, grid: int) -> Image.Image:
    """The picture darkened where nothing is mined; the region over the card's middle is framed."""
    size = picture.shape[0] * SCALE
    mask = Image.fromarray(np.uint8(255 * heat)).resize((size, size), Image.Resampling.NEAREST)
    bright = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
    dark = Image.blend(bright.convert("L").convert("RGB"), Image.new("RGB", bright.size), 0.75)
    drawn = Image.composite(bright, dark, mask)
    cell = size / grid
    x, y = ((box[i] + box[i + 2]) / 2 * SCALE // cell * cell for i in (0, 1))
    ImageDraw.Draw(drawn).rectangle((x, y, x + cell, y + cell), outline=(255, 220, 0), width=2)
    return drawn


def strip(model: LoadedModel, picture: np.ndarray, box) -> Image.Image:
    """HR picture, LR view, and what was mined, side by side."""
    spec, size, grid = model.config.image, picture.shape[0] * SCALE, model.config.clip.grid
    (lr,), (weights,) = jax.device_get(look(model.module, model.params, picture[None]))
    pixels = 255 * (lr * np.array(spec.std) + np.array(spec.mean))
    lr = Image.fromarray(np.uint8(np.clip(pixels, 0, 255).round()))
    parts = (
        Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC),
        lr.resize((size, size), Image.Resampling.NEAREST),
        overlay(picture, mining_map(weights, grid), box, grid),
    )
    out = Image.new("RGB", (3 * size + 2 * 12, size), "white")
    for i, part in enumerate(parts):
        out.paste(part, (i * (size + 12), 0))
    return out


def _answer(name: str, found: str, expected: str) -> str:
    verdict = "right" if found == expected else "wrong"
    return f"<br>{name}: <span class={verdict}>{html.escape(found) or '(nothing)'}</span>"


def write_page(root: Path, summary: dict, pictures: int) -> Path:
    """Writes `root/report/index.html` with its pictures; returns its path.

    Half of the `pictures` come from the training photographs, half from new ones; glyphs are
    unseen in both.
    """
    model = load(root, dtype="float32")
    scenes = {s["image"]: s for s in json.loads((root / "data" / "scenes.json").read_text())}
    answers: dict[str, dict[str, dict]] = {}
    for arm in ARMS:
        for row in json.loads((root / f"answers_{arm}.json").read_text()):
            answers.setdefault(row["image"], {}).setdefault(row["id"], row)[arm] = row["found"]
    report = root / "report"
    report.mkdir(exist_ok=True)
    blocks, strips = [], []
    for split in ("test", "new_photos"):
        for name in [n for n in answers if scenes[n]["split"] == split][: pictures // 2]:
            picture = to_hr(load_image(root / "data" / name), model.config.image)
            strips.append(strip(model, picture, scenes[name]["box"]))
            file = f"{split}_{Path(name).stem}.png"
            strips[-1].save(report / file)
            text = [f"<p>photograph <i>{scenes[name]['photo']}</i>, {split.replace('_', ' ')}</p>"]
            for row in answers[name].values():
                text.append(f"<p class=q><b>{html.escape(row['question'])}</b>")
                text += [
                    _answer(a, row[a], row["answer"]) for a in ("mining", "lr_only") if a in row
                ]
            blocks.append(f"<div class=scene><img src={file}><div>{''.join(text)}</div></div>")
    _contact_sheet(strips[: len(strips) // 2][:3] + strips[len(strips) // 2 :][:3]).save(
        report / "mined.png"
    )
    rows = "".join(f"<tr><td>{what}<td>{summary[key]:.1%}" for key, what in ROWS)
    page = f"""<!doctype html><meta charset=utf-8><title>Mini-Gemini in miniature</title>
<style>{STYLE}</style><h1>Mini-Gemini in miniature</h1>
<p>Held-out questions, answered by free greedy generation and compared exactly.</p>
<table>{rows}</table>
<p>Left: what the high-resolution encoder sees. Middle: all that the low-resolution encoder sees.
Right: what was mined; each square region belongs to one visual token, whose weights over its
high-resolution positions light the picture up. The framed one lies over the card's middle.</p>
{"".join(blocks)}
"""
    partial = report / "index.html.partial"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, report / "index.html")
    return report / "index.html"


def _contact_sheet(strips: list[Image.Image]) -> Image.Image:
    width, height = strips[0].size
    sheet = Image.new("RGB", (width, len(strips) * (height + 12) - 12), "white")
    for i, s in enumerate(strips):
        sheet.paste(s, (0, i * (height + 12)))
    return sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)
