"""What a line typed into the chat does: a table of commands over a conversation.

Every command gives text to print, in pieces; errors are exceptions that name what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mgm_jax.generate.chat import Chat
from mgm_jax.generate.pictures import Shown, load_pictures, split_names
from mgm_jax.imagegen import (
    GEN,
    NO_PROMPT,
    Painted,
    Painter,
    find_prompt,
    improve,
    log_path,
    visible,
    visible_pieces,
)
from mgm_jax.ocr import MAX_TOKENS, fit_hint


@dataclasses.dataclass
class Session:
    """A conversation with its switches.

    tokenizer: the model's, to count OCR hints. about: what `/save` says of the model.
    gen: questions ask for a picture too; rounds: looks of the model at what was painted.
    ocr: questions come with the text of the pictures, once; with `ocr_every_turn`, as the
    original, every question comes with that of all pictures.
    """

    chat: Chat
    painter: Painter
    tokenizer: Any
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    gen: bool = False
    rounds: int = 0
    ocr: bool = False
    ocr_tokens: int = MAX_TOKENS
    ocr_every_turn: bool = False
    allow_urls: bool = False
    open: bool = True
    prompt: str | None = (
        None  # the last one painted, unless the model has failed to write one since
    )
    painted: list[Painted] = dataclasses.field(default_factory=list)
    read: int = 0  # pictures of the history whose text the model has

    def respond(self, line: str) -> Iterator[str]:
        """One line of input -> what to print, in pieces; `open` is False after /quit."""
        line = line.strip()
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if not line:
            return
        if not line.startswith("/"):
            yield from self.ask(line)
        elif name in COMMANDS:
            yield from COMMANDS[name].run(self, rest)
        elif name[1:] in SETTINGS:
            yield self.change(name[1:], rest)
        else:
            raise ValueError(f"unknown command {name}; /help lists the commands")

    def ask(self, question: str) -> Iterator[str]:
        """Streams an answer; with `gen` it also paints the prompt that the answer has."""
        hint = ""
        if self.ocr:
            hint, note = self._hint()
            yield note
        turns = len(self.chat.turns)
        pieces = self.chat.ask(question, hint + (GEN if self.gen else ""))
        try:
            yield from visible_pieces(pieces) if self.gen else pieces
        finally:
            pieces.close()
            kept = len(self.chat.turns) > turns
            if self.ocr and kept:
                self.read = len(self.chat.images)
        if not self.gen:
            return
        prompt = find_prompt(self.chat.turns[-1].text) if kept else None
        if prompt is None:
            self.prompt = None
            yield f"\n({NO_PROMPT}; /gen paints its reply, /gen TEXT a prompt of yours)"
        else:
            yield from self.paint(prompt)

    def paint(self, prompt: str) -> Iterator[str]:
        """Paints a prompt and, in `rounds`, what the model makes of it; tells of each picture."""
        self.prompt = prompt
        yield f"\nprompt: {prompt}\n"
        first = self.painter.paint(prompt)
        yield self._tell(first)
        for done in improve(self.chat.ask_about, self.painter, first, self.rounds):
            yield f"round {done.number}: {done.critique}\n"
            if done.painted:
                self.prompt = done.prompt
                yield f"prompt: {done.prompt}\n" + self._tell(done.painted)
            else:
                yield f"({done.stopped})\n"
        if self.rounds:
            yield f"log: {log_path(first)}"

    def change(self, name: str, text: str) -> str:
        """Sets one of SETTINGS from its text or to its "default"; an empty text only shows it."""
        setting = SETTINGS[name]
        if text:
            try:
                value = None if text == "default" else setting.kind(text)
            except ValueError:
                kind = setting.kind.__name__
                raise ValueError(f"/{name}: found {text!r}, expected a value ({kind})") from None
            changed = []  # all are checked before any is changed
            for owner, field in self._places(setting):
                old = getattr(owner, field)
                new = getattr(type(old), name) if text == "default" else value
                changed.append((owner, field, dataclasses.replace(old, **{name: new})))
            for change in changed:
                setattr(*change)
        owner, field = self._places(setting)[0]
        value = getattr(getattr(owner, field), name)
        return f"{name}: {'default of the back end' if value is None else value}"

    def _places(self, setting: Setting) -> list[tuple[Any, str]]:
        """Where a setting is: (owner, its attribute that holds `Sampling` or `ImageSettings`)."""
        owners = {"sampling": self.chat, "settings": self.painter}
        return [(owners[field], field) for field in setting.places]

    def _hint(self) -> tuple[str, str]:
        """The OCR hint for the next question, and what to tell the user of it."""
        pictures = [*self.chat.images[0 if self.ocr_every_turn else self.read :]]
        texts = [text for shown in [*pictures, *self.chat.pending] for text in shown.texts]
        hint, used = fit_hint(texts, self.tokenizer, self.ocr_tokens)
        left = f" ({len(texts) - len(used)} more left out)" if len(used) < len(texts) else ""
        return hint, f"(OCR: {', '.join(used) or 'no text'}{left})\n" if texts else ""

    def _tell(self, painted: Painted) -> str:
        self.painted.append(painted)
        shown = {k: v for k, v in painted.settings.items() if k not in ("prompt", "critique")}
        return f"picture: {painted.path}\n  {', '.join(f'{k} {v}' for k, v in shown.items())}\n"


# --- settings: a command for each field of `Sampling` and `ImageSettings` that can be typed ---


class Setting(NamedTuple):
    """`/name VALUE`: the type of the value, and which of the chat's `sampling` and the painter's
    `settings` have the field."""

    kind: Callable[[str], Any]
    places: tuple[str, ...]


SETTINGS = {
    "seed": Setting(int, ("sampling", "settings")),
    "temperature": Setting(float, ("sampling",)),
    "top_p": Setting(float, ("sampling",)),
    "top_k": Setting(int, ("sampling",)),
    "max_new_tokens": Setting(int, ("sampling",)),
    "negative_prompt": Setting(str, ("settings",)),
    "width": Setting(int, ("settings",)),
    "height": Setting(int, ("settings",)),
    "steps": Setting(int, ("settings",)),
    "guidance": Setting(float, ("settings",)),
}


# --- commands ---


def _image(session: Session, rest: str) -> Iterator[str]:
    if rest:
        shown = load_pictures(split_names(rest), session.allow_urls)
        session.chat.pending += shown
        yield f"looking at {', '.join(s.name for s in shown)}\n"
    told = [*session.chat.images, *session.chat.pending]
    for k, picture in enumerate(told, 1):
        new = " (with the next question)" if k > len(session.chat.images) else ""
        yield f"picture {k}: {_name(picture)}{new}\n"
    if not told:
        yield "no picture; /image FILE ... shows some"


def _name(shown: Shown) -> str:
    return f"{shown.name}, {shown.picture.width} x {shown.picture.height}"


def _clear(session: Session, rest: str) -> Iterator[str]:
    session.chat.clear()
    session.read, session.prompt = 0, None
    yield "cleared"


def _system(session: Session, rest: str) -> Iterator[str]:
    session.chat.system = rest or None
    yield f"system text: {rest or 'that of the template'}"


def _gen(session: Session, rest: str) -> Iterator[str]:
    if rest in ("on", "off"):
        session.gen = rest == "on"
        yield f"pictures with answers: {rest}"
        return
    answer = session.chat.turns[-1].text if session.chat.turns else ""
    prompt = rest or session.prompt or find_prompt(answer) or visible(answer).strip()
    if not prompt:
        raise ValueError("/gen: there is no prompt and no answer yet; /gen TEXT paints the text")
    yield from session.paint(prompt)


def _loop(session: Session, rest: str) -> Iterator[str]:
    if rest:
        if not rest.isdecimal():
            raise ValueError(f"/loop: found {rest!r}, expected a number, 0 or more")
        session.rounds = int(rest)
    yield f"looks of the model at what was painted: {session.rounds}"


def _ocr(session: Session, rest: str) -> Iterator[str]:
    if rest in ("on", "off"):
        session.ocr = rest == "on"
        yield f"OCR hints: {rest}"
        return
    if rest:
        raise ValueError(f"/ocr: found {rest!r}, expected on, off or nothing")
    for shown in [*session.chat.images, *session.chat.pending]:
        yield f"{shown.name}: {', '.join(shown.texts) or 'no text'}\n"
    yield f"OCR hints: {'on' if session.ocr else 'off'}"


def _settings(session: Session, rest: str) -> Iterator[str]:
    yield "\n".join(session.change(name, "") for name in SETTINGS)


def _save(session: Session, rest: str) -> Iterator[str]:
    base = Path(rest or time.strftime("chat-%Y%m%d-%H%M%S")).expanduser()
    files = [base.with_name(base.name + ending) for ending in (".json", ".txt")]
    if found := [file for file in files if file.exists()]:
        raise FileExistsError(f"/save: {found[0]} is there already; give another name")
    base.parent.mkdir(parents=True, exist_ok=True)
    record = session.about | {
        "system": session.chat.system,
        "sampling": dataclasses.asdict(session.chat.sampling),
        "turns": [turn._asdict() for turn in session.chat.turns],
        "images": [shown.name for shown in session.chat.images],
        "painted": [{"file": str(p.path)} | p.settings for p in session.painted],
    }
    transcript = "\n\n".join(f"{role}: {text}" for role, text in session.chat.turns)
    for file, text in zip(files, (json.dumps(record, indent=1), transcript), strict=True):
        with open(file, "x", encoding="utf-8") as stream:
            stream.write(text + "\n")
    yield f"saved {files[0]} and {files[1]}"


def _help(session: Session, rest: str) -> Iterator[str]:
    for name, command in COMMANDS.items():
        yield f"{f'{name} {command.usage}':<22}{command.does}\n"
    names = ", ".join(f"/{name}" for name in SETTINGS)
    yield f"settings, followed by a value, by default, or by nothing to see it: {names}\n"
    yield "Anything else is a question. Ctrl-C stops an answer, Ctrl-D leaves."


def _quit(session: Session, rest: str) -> Iterator[str]:
    session.open = False
    yield ""


class Command(NamedTuple):
    usage: str
    does: str
    run: Callable[[Session, str], Iterator[str]]


COMMANDS = {
    "/image": Command("FILE ...", "show files, globs or URLs with the next question", _image),
    "/clear": Command("", "forget the conversation and its pictures", _clear),
    "/system": Command("[TEXT]", "the system text; without TEXT, the template's own", _system),
    "/gen": Command("on|off|[TEXT]", "ask for pictures; paint TEXT, or the last prompt", _gen),
    "/loop": Command("N", "N times the model looks at what was painted, and re-prompts", _loop),
    "/ocr": Command("on|off|", "text read in pictures as a hint; or show it", _ocr),
    "/settings": Command("", "show all settings", _settings),
    "/save": Command("[NAME]", "write NAME.json and the transcript NAME.txt", _save),
    "/help": Command("", "this text", _help),
    "/quit": Command("", "leave", _quit),
}
