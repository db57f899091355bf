"""`mgm-jax chat DIR`: a conversation about pictures in a terminal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from mgm_jax.data.images import ImageError, load_image
from mgm_jax.switches import choose

HELP = """\
/image FILE   talk about this picture (starts a new conversation)
/clear        forget the conversation and the picture
/help         this text
/quit         leave (or end of input)
Anything else is a question."""


class Chat:
    """The state of a conversation: its pictures and its turns. `cli_eos`: what ends an answer."""

    def __init__(self, model, max_new_tokens: int, cli_eos: str = "family"):
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.cli_eos = cli_eos
        self.clear()

    def clear(self) -> None:
        self.turns: list[tuple[str, str]] = []
        self.images: list = []

    def show(self, files: list[str]) -> None:
        """Starts anew with these pictures; ImageError leaves the conversation as it was."""
        images = [load_image(Path(f).expanduser()) for f in files]
        self.clear()
        self.images = images

    def ask(self, question: str) -> str:
        from mgm_jax.generate.engine import Request

        request = Request([*self.turns, ("user", question)], self.images)
        options = {"max_new_tokens": self.max_new_tokens, "cli_eos": self.cli_eos}
        answer = self.model.generate([request], **options)[0]
        self.turns += [("user", question), ("assistant", answer)]
        return answer


def respond(chat: Chat, line: str) -> str | None:
    """One line of input -> what to print; None ends the chat. Errors are text, not exceptions."""
    command, _, rest = line.strip().partition(" ")
    if not command:
        return ""
    try:
        if command == "/quit":
            return None
        if command == "/help":
            return HELP
        if command == "/clear":
            chat.clear()
            return "cleared"
        if command == "/image":
            chat.show([rest.strip()])
            return f"looking at {rest.strip()}"
        if command.startswith("/"):
            return f"unknown command {command}; /help lists the commands"
        return chat.ask(line.strip())
    except (ImageError, ValueError, OSError) as error:
        return f"error: {error}"


def loop(chat: Chat, read: Callable[[], str]) -> None:
    """Reads and answers lines until /quit or the end of input."""
    print("Ask about a picture: /image FILE, then a question. /help lists the commands.")
    while True:
        try:
            reply = respond(chat, read())
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if reply is None:
            return
        if reply:
            print(reply, flush=True)


def parse_switches(items: list[str], faithful: bool = False) -> tuple[dict, dict]:
    """["cli_eos=tokenizer", ...] -> (switches of `load`, those of the chat); ValueError."""
    given = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign:
            raise ValueError(f"--switch {item!r}: expected NAME=VALUE")
        given[name] = value
    both = choose(("model", "load", "chat"), faithful, given)
    ours = choose("chat", faithful)
    return {n: v for n, v in both.items() if n not in ours}, {n: both[n] for n in ours}


def with_template(model, cli_auto_template: str):
    """The model, in the template that the original's command line takes for it (MGM_SPEC 7.3)."""
    wrong = cli_auto_template == "vicuna_v1" and model.template == "llama_3"
    return dataclasses.replace(model, template="v1") if wrong else model


def main(args) -> None:
    """`args`: directory, dtype, image (list), question, max_new_tokens, faithful, switch (list)."""
    from mgm_jax.api import load

    switches, ours = parse_switches(args.switch, args.faithful)
    model = load(args.directory, dtype=args.dtype, switches=switches)
    model = with_template(model, ours["cli_auto_template"])
    chat = Chat(model, args.max_new_tokens, ours["cli_eos"])
    if args.image:
        chat.show(args.image)
    if args.question:
        print(chat.ask(args.question))
        return
    loop(chat, lambda: input("> " if sys.stdin.isatty() else ""))
