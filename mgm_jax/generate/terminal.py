"""`mgm-jax chat DIR`: a conversation in a terminal, over ssh, or through a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mgm_jax.generate.chat import Chat, Stream
from mgm_jax.generate.commands import Session
from mgm_jax.generate.engine import Engine
from mgm_jax.generate.pictures import load_pictures
from mgm_jax.generate.sampling import Sampling
from mgm_jax.imagegen import ImageSettings, Painter, make_backend
from mgm_jax.switches import choose

# What a terminal would obey instead of showing: an answer, or text in a picture, is no program.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show(pieces: Iterator[str]) -> None:
    """Prints text as it comes, without the white space in front, and ends the line."""
    last = ""
    try:
        with contextlib.closing(pieces):
            for piece in pieces:
                piece = _CONTROL.sub("", piece)
                piece = piece if last else piece.lstrip()
                last = piece[-1:] or last
                print(piece, end="", flush=True)
    finally:
        if last not in ("", "\n"):
            print(flush=True)


def loop(session: Session, read: Callable[[], str], interactive: bool) -> None:
    """Reads and answers lines until /quit or the end of input. No error ends it.

    Ctrl-C stops an answer; at the prompt it drops the line, or, without a terminal, ends the chat.
    """
    while session.open:
        try:
            line = read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D leaves)")
            if interactive:
                continue
            return
        try:
            show(session.respond(line))
        except KeyboardInterrupt:
            print("(stopped)", flush=True)
        except BrokenPipeError:  # nobody reads any more
            raise
        except Exception as error:  # whatever it is, the conversation so far is not lost
            print(f"error: {_CONTROL.sub('', str(error)) or type(error).__name__}", flush=True)


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


@contextlib.contextmanager
def engine_stream(model, cli_eos: str, max_length: int) -> Iterator[Stream]:
    """A loaded model's answers, one at a time, from an engine in a thread of its own.

    `max_length`: tokens of a conversation with its pictures and the answer. Closing a stream, or
    Ctrl-C while it waits, stops the answer.
    """
    sizes = dict(slots=1, prefill_batch=1, decode_steps=4, max_length=max_length)
    with Engine(model, cli_eos=cli_eos, **sizes).start() as engine:

        def stream(request, sampling):
            with contextlib.closing(engine.submit(request, sampling).stream()) as deltas:
                for delta in deltas:
                    yield delta.text

        yield stream


def main(args) -> None:
    """`args`: those of `mgm-jax chat` (`mgm_jax.cli`)."""
    switches, ours = parse_switches(args.switch, args.faithful)
    sampling = Sampling(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed or 0,
    )
    backend = make_backend(args.gen_backend, args.gen_option)
    painter = Painter(backend, Path(args.gen_dir), ImageSettings(seed=args.seed))
    for name in ("loop", "ocr_tokens"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected >= 0")
    pictures = load_pictures(args.image, args.allow_urls)

    from mgm_jax.api import load
    from mgm_jax.compile_cache import keep_compiled

    keep_compiled()
    model = load(args.directory, dtype=args.dtype, switches=switches, base=args.base)
    model = with_template(model, ours["cli_auto_template"])
    with engine_stream(model, ours["cli_eos"], args.max_length) as stream:
        session = Session(
            Chat(stream, sampling, args.system, pending=pictures),
            painter,
            model.tokenizer,
            about={"model": args.directory, "template": model.template},
            gen=args.gen,
            rounds=args.loop,
            ocr=args.ocr,
            ocr_tokens=args.ocr_tokens,
            ocr_every_turn=args.faithful,
            allow_urls=args.allow_urls,
        )
        talk(session, args.question)


def talk(session: Session, question: str | None) -> None:
    """Answers one question, or reads lines from stdin to its end."""
    for stream in (sys.stdin, sys.stdout):  # a terminal of another encoding is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if question is not None:
        show(session.respond(question))
        return
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for `input`)
    print("Ask a question; /image FILE shows a picture, /help lists the commands.", flush=True)
    loop(session, lambda: input("> " if interactive else ""), interactive)
