"""`mgm-jax predict`: the answers to a file of requests, one JSON line each.

A line in has `messages` (a list of {"role", "content"}, the last one the user's) or `text`, and
`images` (paths, relative to --images or else to the file). `id` is its name, its line number where
there is none. A line out has `id`, `text`, `finish`, `prompt_tokens`, `tokens` (of the answer) and
with --logprobs `ids` and `logprobs`; or `id` and `error`. The same command goes on where it was
stopped, and tries errors again. Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgm_jax.data.files import write_whole
from mgm_jax.generate.prompts import Request
from mgm_jax.generate.sampling import Sampling
from mgm_jax.generate.tickets import Answer
from mgm_jax.json_lines import JsonLines

FIELDS = ("id", "messages", "text", "images")


def read_requests(file: Path, images: Path | None) -> dict[Any, Request | Exception]:
    """id -> request, or what is wrong with its line. ValueError for a file that cannot be told
    apart into lines with ids; OSError for one that cannot be read."""
    found: dict[Any, Request | Exception] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: invalid JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: found a {type(row).__name__}, expected an object")
        name = row.get("id", number)
        if not isinstance(name, str | int) or name in found:
            raise ValueError(f"{where}: id is {name!r}, expected a string or number of its own")
        try:
            found[name] = _request(row, images or file.parent)
        except ValueError as error:
            found[name] = ValueError(f"{where}: {error}")
    return found


def _request(row: Mapping[str, Any], root: Path) -> Request:
    if unknown := sorted(set(row) - set(FIELDS)):
        raise ValueError(f"unknown key {unknown[0]!r}, expected {', '.join(FIELDS)}")
    if ("messages" in row) == ("text" in row):
        raise ValueError("expected either messages or text")
    messages = row.get("messages", [{"role": "user", "content": row.get("text")}])
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"messages is {messages!r}, expected a list of objects")
    turns = [(m.get("role"), m.get("content")) for m in messages]
    if not all(isinstance(x, str) for turn in turns for x in turn):
        raise ValueError(f"messages is {messages!r}, expected a role and a content in each")
    names = row.get("images", [])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"images is {names!r}, expected a list of paths")
    return Request(turns, [root / n for n in names])


def predict(
    model, requests: Mapping[Any, Request | Exception], out: Path, sampling: Sampling, slots: int
) -> Iterator[tuple[int, int, int]]:
    """Appends the answers that `out` has not yet; in the end they are in the order of the requests.

    Yields after each of them (lines done, lines in all, errors so far). Errors of earlier runs are
    dropped from `out`. ValueError if it has answers to other requests or settings.
    """
    asked = {i: _fingerprint(r, sampling) for i, r in requests.items()}
    done = set()

    def keep(row: Mapping) -> bool:
        if "error" in row:
            return False
        if asked.get(row.get("id")) != row.get("of"):
            raise ValueError(
                f"{out}: the answer of id {row.get('id')!r} is to another request or under other "
                "settings; give another --out, or remove this one"
            )
        done.add(row["id"])
        return True

    lines = JsonLines(out, keep, sync=True)
    try:
        numbered = [(n, i, r) for n, (i, r) in enumerate(requests.items()) if i not in done]
        items = [(r, sampling, n) for n, _, r in numbered if _good(r)]
        found = model.answer_items(items, batch_size=slots)
        errors = 0
        for count, (_, name, request) in enumerate(numbered, 1 + len(done)):
            answer = next(found) if _good(request) else request
            errors += isinstance(answer, Exception)
            lines.write({"id": name, "of": asked[name]} | _line(answer))
            yield count, len(requests), errors
    finally:
        lines.close()
    _put_in_order(out, list(requests))


def _fingerprint(request: Request | Exception, sampling: Sampling) -> str:
    """Differs if the request or a setting does (not if the pixels of a picture do)."""
    parts = (request.messages, [str(i) for i in request.images]) if _good(request) else ()
    return hashlib.sha256(repr((parts, sampling)).encode()).hexdigest()[:16]


def _good(request: Request | Exception) -> bool:
    return not isinstance(request, Exception)


def _put_in_order(out: Path, names: Sequence[Any]) -> None:
    """Lines of an earlier run, which tried errors again, may stand in another order."""
    lines = {json.loads(line)["id"]: line for line in out.read_text().splitlines()}
    if list(lines) != names:
        write_whole(out, "".join(f"{lines[n]}\n" for n in names).encode())


def _line(answer: Answer | Exception) -> dict[str, Any]:
    if isinstance(answer, Exception):
        return {"error": str(answer) or type(answer).__name__}
    line = {"text": answer.text, "finish": answer.finish}
    line |= {"prompt_tokens": answer.prompt_tokens, "tokens": len(answer.ids)}
    if answer.logprobs is not None:
        line |= {"ids": answer.ids, "logprobs": answer.logprobs}
    return line


def main(argv: Sequence[str]) -> None:
    """The command `mgm-jax predict`."""
    args = _parser().parse_args(argv)
    names = [*(field for field, _, _ in SETTINGS), "logprobs"]
    sampling = Sampling(stop=tuple(args.stop), **{n: getattr(args, n) for n in names})
    requests = read_requests(Path(args.input), args.images and Path(args.images))

    from mgm_jax.api import load

    model = load(args.directory, dtype=args.dtype)
    begin, first, errors = time.monotonic(), None, 0
    for step in predict(model, requests, Path(args.out), sampling, args.batch_size):
        done, total, errors = step
        first = done - 1 if first is None else first
        rate = (done - first) / (time.monotonic() - begin)
        print(f"\r{_progress(done, total, rate)}", end="", file=sys.stderr, flush=True)
    print(f"\n{len(requests)} answers in {args.out}, {errors} of them errors")
    if errors:
        sys.exit(1)


def _progress(done: int, total: int, rate: float) -> str:
    left = (total - done) / rate
    return f"{done} of {total}, {rate:.2f} a second, {left:.0f} s to go "


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgm-jax predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", help="a model directory, ours or the original's")
    parser.add_argument("--in", dest="input", required=True, metavar="FILE", help="JSON lines")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines; appended to")
    parser.add_argument("--images", metavar="DIR", help="of relative paths; default: FILE's")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s"
    )
    for field, kind, what in SETTINGS:
        default = getattr(Sampling(), field)
        name = f"--{field.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=default, help=f"{what}; default: {default}")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends an answer; repeatable"
    )
    parser.add_argument("--logprobs", action="store_true", help="with ids and log-probabilities")
    return parser


SETTINGS: Sequence[tuple[str, type, str]] = (
    ("max_new_tokens", int, "tokens of an answer at most"),
    ("temperature", float, "0: the most likely answer"),
    ("top_p", float, "draw from the likeliest tokens of this probability"),
    ("top_k", int, "draw from so many of the likeliest tokens, 0: from all"),
    ("num_beams", int, "sequences of a beam search"),
    ("seed", int, "of the draws"),
)
