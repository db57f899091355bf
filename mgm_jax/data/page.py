"""A training batch as one HTML page that needs no other file: rows, segments, tokens, pictures.

Everything is drawn from the batch's arrays, so it is what training gets; names come from beside.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mgm_jax.data.page_style import STYLE
from mgm_jax.data.rows import Batch, Member, Segment, Stretch, digest, read, supervised, totals
from mgm_jax.data.thumbnails import LOSSLESS, data_uri, low_views
from mgm_jax.models.config import MgmConfig
from mgm_jax.text import Tokenizer

SIDES = {"hr": 384, "lr": 336, "crop": 192, "slot": 64}  # most pixels of the pictures on the page
LEGEND = (
    ("prompt", "text without loss"),
    ("loss", "text that is learnt: the position before it predicts it with loss"),
    ("image", "visual tokens of a picture"),
    ("padding", "padding"),
)
MARKS = str.maketrans({"\n": "↵\n", "\t": "⇥\t"})


def page(
    batch: Batch,
    members: Sequence[Sequence[Member]],
    tokenizer: Tokenizer,
    cfg: MgmConfig,
    *,
    heading: str,
    detail: str,
    rows: int,
) -> str:
    """The page of the first `rows` rows of a batch; its counts are of the whole batch.

    `heading` and `detail` say which batch it is. `members`: the records of each row in the order of
    its segments; ValueError if they do not fit.
    """
    found = read(batch, members, cfg.visual_tokens)
    all_rows, groups = len(found), len(batch["image_mask"])
    shown = found[:rows]
    inside = range(-(-len(shown) // (all_rows // groups)))  # groups that have a row on the page
    which = f"the first {len(shown)} of {all_rows} rows" if rows < all_rows else "all rows"
    draw = _Tokens(batch, tokenizer, cfg.visual_tokens)
    length = batch["tokens"].shape[1]
    return f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<title>{_text(heading)}</title><style>{STYLE}</style>
<header><h1>{_text(heading)}</h1>
<p>{_text(detail)}</p><p class=dim>sha256 of the arrays <code>{digest(batch)}</code></p>
<div class=tiles>{"".join(_tiles(totals(batch)))}</div>{_warning(batch)}</header>
<section><h2>Rows <small>{which}, {length:,} positions each</small></h2>
<p class=legend>{"".join(f"<span><i class={k}></i>{what}</span>" for k, what in LEGEND)}
<span class=hint>Point at a token for its id, position, target and weight.</span></p>
{"".join(_bar(r, row, length) for r, row in enumerate(shown))}</section>
<section><h2>Picture slots <small>{len(inside)} of {groups} groups, whose rows share them; below
each the row / segment that takes it</small></h2>
{"".join(_group(g, batch, found, len(shown)) for g in inside)}</section>
{"".join(_row(r, row, batch, cfg, draw) for r, row in enumerate(shown))}</html>
"""


def _text(value) -> str:
    return html.escape(str(value))


def _tiles(count: Mapping[str, int | float]) -> Iterable[str]:
    share = count["loss_tokens"] / max(count["tokens"], 1)
    full, slots = count["rows"] * count["length"], count["groups"] * count["slots"]
    for value, name, detail in (
        (f"{count['token_fill']:.1%}", "token fill", f"{count['tokens']:,} of {full:,} positions"),
        (f"{count['slot_fill']:.1%}", "slot fill", f"{count['pictures']:,} of {slots:,} slots"),
        (f"{count['examples']:,}", "examples", f"in {count['rows']:,} rows"),
        (f"{count['loss_tokens']:,}", "loss tokens", f"{share:.1%} of what is not padding"),
    ):
        yield f"<div><b>{value}</b>{name}<small>{detail}</small></div>"


def _warning(batch: Batch) -> str:
    _, stray = supervised(batch)
    if not stray.any():
        return ""
    row, position = np.argwhere(stray)[0]
    return (
        f"<p class=warning>{stray.sum():,} positions have a weight but a target that is not the "
        f"text token behind them; the first is position {position} of row {row}.</p>"
    )


def _bar(r: int, row: Sequence[Segment], length: int) -> str:
    """A row as a bar: its segments, each made of stretches, and the padding."""
    parts = []
    for segment in row:
        stretches = "".join(
            f'<i class={s.kind} style="flex-grow:{s.stop - s.start}"></i>'
            for s in segment.stretches
        )
        parts.append(
            f'<a href=#r{r}s{segment.number} style="width:{len(segment) / length:.3%}" '
            f'title="{segment.number}: {_text(segment.member[2])}, {len(segment):,} tokens">'
            f"{stretches}</a>"
        )
    used = sum(map(len, row))
    if used < length:
        parts.append("<i class=padding></i>")
    return (
        f"<div class=bar><a href=#r{r}>row {r}</a><div>{''.join(parts)}</div>"
        f"<span>{used / length:.1%}</span></div>"
    )


def _group(g: int, batch: Batch, found: Sequence[Sequence[Segment]], shown: int) -> str:
    """The slots of a group: the picture in each, and the row and segment that take it."""
    mask = batch["image_mask"][g]
    per_group = len(found) // len(batch["image_mask"])
    first = g * per_group
    taken = {slot: s for row in found[first : first + per_group] for s in row for slot in s.slots}
    cells = []
    for m, used in enumerate(mask):
        picture, user, target = "<i></i>", taken.get(m), ""
        if used:
            picture = f'<img alt="" src={data_uri(batch["images"][g, m], SIDES["slot"])}>'
        if user and user.row < shown:
            target = f" href=#g{g}m{m}"
        place = f"{user.row} / {user.number}" if user else "not used" if used else "empty"
        cells.append(f"<a{target}>{picture}<small>slot {m}<br>{place}</small></a>")
    rows = f"rows {first}–{first + per_group - 1}" if per_group > 1 else f"row {first}"
    return (
        f"<div class=group><h3>Group {g} <small>{rows}, {mask.sum()} of {len(mask)} slots "
        f"used</small></h3><div class=slots>{''.join(cells)}</div></div>"
    )


def _row(r: int, row: Sequence[Segment], batch: Batch, cfg: MgmConfig, draw: _Tokens) -> str:
    length = batch["tokens"].shape[1]
    used = sum(map(len, row))
    group = r // (len(batch["tokens"]) // len(batch["image_mask"]))
    rest = f"<p class=rest>{length - used:,} positions of padding</p>" if used < length else ""
    return (
        f"<section class=row id=r{r}><h2>Row {r} <small>group {group}, "
        f"{_count(len(row), 'example')}, {used:,} of {length:,} positions, {used / length:.1%} full"
        "</small></h2>"
        f"{''.join(_segment(s, batch, cfg, draw) for s in row)}{rest}</section>"
    )


def _segment(segment: Segment, batch: Batch, cfg: MgmConfig, draw: _Tokens) -> str:
    source, _, where = segment.member
    group = segment.group
    pictures = "".join(
        _picture(group, slot, batch["images"][group, slot], cfg.image) for slot in segment.slots
    )
    facts = (
        f"positions {segment.start:,}–{segment.stop - 1:,}",
        _count(len(segment), "token"),
        _count(len(segment.slots), "picture"),
        _count(segment.loss_tokens, "loss token"),
    )
    return (
        f"<article id=r{segment.row}s{segment.number}><h3><b>{segment.number}</b> {_text(where)} "
        f"<small>{_text(source)}</small></h3><p class=dim>{', '.join(facts)}</p>"
        f"<div class=example>{pictures and f'<div class=pictures>{pictures}</div>'}"
        f"<div class=text>{draw(segment)}</div></div></article>"
    )


def _picture(group: int, slot: int, pixels: np.ndarray, spec) -> str:
    """The views of a slot's picture: HR, then LR, or the crops as they were cut and the global."""
    low, crops = np.asarray(low_views(pixels, spec)), spec.grid**2
    figures = [_figure("hr", [pixels], f"HR {pixels.shape[0]} px")]
    if crops == 1:
        figures.append(_figure("lr", low, f"LR {spec.lr_size} px"))
    else:
        figures.append(_figure("crop", low[:crops], f"{crops} crops {spec.lr_size} px", spec.grid))
        if spec.use_global:
            figures.append(_figure("lr", low[crops:], f"global {spec.lr_size} px"))
    return f"<div class=views id=g{group}m{slot}>{''.join(figures)}<p>slot {slot}</p></div>"


def _figure(kind: str, pictures: Sequence[np.ndarray], caption: str, columns: int = 1) -> str:
    images = "".join(f'<img alt="{caption}" src={data_uri(p, SIDES[kind])}>' for p in pictures)
    tiny = " tiny" if len(pictures[0]) <= LOSSLESS else ""
    return (
        f'<figure class="{kind}{tiny}"><div style="grid-template-columns:repeat({columns},1fr)">'
        f"{images}</div><figcaption>{caption}</figcaption></figure>"
    )


class _Tokens:
    """segment -> its token stream: <b> with loss, <i> without, a picture's tokens as one box."""

    def __init__(self, batch: Batch, tokenizer: Tokenizer, visual_tokens: int):
        self.batch, self.tokenizer, self.visual_tokens = batch, tokenizer, visual_tokens
        self.special = set(tokenizer.special_tokens.values())
        _, self.stray = supervised(batch)

    def __call__(self, segment: Segment) -> str:
        return "".join(
            self._picture(segment, s) if s.kind == "image" else self._text(segment.row, s)
            for s in segment.stretches
        )

    def _text(self, row: int, stretch: Stretch) -> str:
        tag, parts = "b" if stretch.kind == "loss" else "i", []
        for at in range(stretch.start, stretch.stop):
            token = self.batch["tokens"][row, at]
            piece = self.tokenizer.piece(token)
            kind = " class=special" if token in self.special and piece.strip() else ""
            facts = f"id {token}, {self._facts(row, at)}"
            parts.append(f'<{tag}{kind} data-t="{facts}">{_visible(piece)}</{tag}>')
            parts.append(self._stray(row, at))
        return "".join(parts)

    def _picture(self, segment: Segment, stretch: Stretch) -> str:
        n, row = stretch.stop - stretch.start, segment.row
        cut = "" if n == self.visual_tokens else f" of {self.visual_tokens}, cut"
        first = self.batch["positions"][row, stretch.start]
        facts = f"slot {stretch.slot}, from position {first}; the last: "
        facts += self._facts(row, stretch.stop - 1)
        strays = "".join(self._stray(row, at) for at in range(stretch.start, stretch.stop))
        return (
            f'<a class=box href=#g{segment.group}m{stretch.slot} data-t="{facts}">'
            f"&lt;image&gt; × {n}{cut}</a>{strays}"
        )

    def _facts(self, row: int, at: int) -> str:
        position, target, weight = (
            self.batch[name][row, at] for name in ("positions", "targets", "loss_weights")
        )
        return f"position {position}, target {target}, weight {weight:g}"

    def _stray(self, row: int, at: int) -> str:
        """A mark behind a position whose weight is on another target than the text behind it."""
        if not self.stray[row, at]:
            return ""
        weight, target = (self.batch[name][row, at] for name in ("loss_weights", "targets"))
        return f"<em>weight {weight:g} on {_visible(self.tokenizer.piece(target))}</em>"


def _visible(piece: str) -> str:
    """A piece with what cannot be seen made visible."""
    if piece.isspace() and "\n" not in piece:
        piece = piece.replace(" ", "␣")
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in piece)
    return html.escape(shown).translate(MARKS)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
