"""`mgm-jax chat DIR`: a conversation about pictures in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from mgm_jax.data.images import ImageError, load_image

HELP = """\
/image FILE   talk about this picture (starts a new conversation)
/clear        forget the conversation and the picture
/help         this text
/quit         leave (or end of input)
Anything else is a question."""


class Chat:
    """The state of a conversation: its pictures and its turns."""

    def __init__(self, model, max_new_tokens: int):
        self.model = model
        self.max_new_tokens = max_new_tokens
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
        answer = self.model.generate([request], max_new_tokens=self.max_new_tokens)[0]
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


def main(args) -> None:
    """`args`: directory, image (list), question, max_new_tokens."""
    from mgm_jax.api import load

    chat = Chat(load(args.directory, dtype=args.dtype), args.max_new_tokens)
    if args.image:
        chat.show(args.image)
    if args.question:
        print(chat.ask(args.question))
        return
    loop(chat, lambda: input("> " if sys.stdin.isatty() else ""))
