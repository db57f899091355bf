"""A checkpoint as a chat model of lmms-eval (0.7): tasks ask, `mgm_jax.load(...).generate` answers.

Imported when lmms-eval makes the model; jax is imported when the model is loaded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmms_eval.api.model import lmms
from tqdm import tqdm

IMAGE = "<image>"
# Keys of a task's generation_kwargs that say how to draw, with the value that changes nothing of
# greedy decoding; and those about LLaVA's pictures, which our checkpoints prepare by themselves.
GREEDY = {"num_beams": 1, "repetition_penalty": 1.0}
NOT_OURS = ("image_aspect_ratio",)
DRAWS = ("do_sample", "temperature", "top_p", "top_k", "seed")
KNOWN = ("max_new_tokens", "until", *DRAWS, *GREEDY, *NOT_OURS)
DEFAULT_NEW_TOKENS = 1024  # as lmms-eval's own models


class Settings(NamedTuple):
    """What a request asks of the decoding: tokens at most, and strings that end the answer."""

    max_new_tokens: int
    until: tuple[str, ...]


class MGMJax(lmms):
    """One JAX program with a checkpoint in it.

    pretrained: a model directory, ours or the original's. mesh: "fsdp:8", or axes joined by "+".
    batch_size, max_batch_size: requests at a time. ValueError for what we cannot do.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        dtype: str = "bfloat16",
        mesh: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **others: Any,
    ):
        super().__init__()
        if others:
            raise ValueError(
                f"mgm_jax has no model argument {next(iter(others))!r}, known: pretrained, dtype, "
                "mesh, batch_size, max_batch_size"
            )
        if device is not None:
            raise ValueError(f"device is {device!r}: jax chooses it; set JAX_PLATFORMS instead")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(
                "WORLD_SIZE is more than 1, but one JAX program drives all devices: start "
                "lmms-eval once, with mesh=..., not by torchrun or accelerate"
            )
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}, expected a number of at least 1")
        self.batch_size = min(int(batch_size), int(max_batch_size or batch_size))
        import mgm_jax
        from mgm_jax.sharding import make_mesh

        mesh = None if mesh is None else make_mesh(parse_mesh(mesh))
        self._model = mgm_jax.load(pretrained, dtype=dtype, mesh=mesh)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests, whose `args` are (context, doc_to_messages,
        gen_kwargs, doc_id, task, split)."""
        wanted = [read_settings(r.args[2], f"task {r.args[4]}") for r in requests]
        answers: list[str] = [""] * len(requests)
        with tqdm(total=len(requests), desc="mgm_jax", disable=self.rank != 0) as bar:
            for settings, numbers in batches(wanted, self.batch_size):
                asked = [self._request(requests[i]) for i in numbers]
                found = self._model.generate(
                    asked, max_new_tokens=settings.max_new_tokens, batch_size=self.batch_size
                )
                for i, text in zip(numbers, found, strict=True):
                    answers[i] = until(text, settings.until)
                    context, _, gen_kwargs, *_ = requests[i].args
                    self.cache_hook.add_partial("generate_until", (context, gen_kwargs), answers[i])
                bar.update(len(numbers))
        return answers

    def _request(self, request: Any):
        from mgm_jax import Request

        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return Request(*read_messages(messages, f"task {task}, document {doc_id}"))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "mgm_jax generates answers only: no task that compares likelihoods"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("mgm_jax answers one round a question: no task of several rounds")


def parse_mesh(text: str) -> dict[str, int]:
    """ "fsdp:4+tensor:2" -> {"fsdp": 4, "tensor": 2}; ValueError."""
    sizes = {}
    for part in text.split("+"):
        axis, _, size = part.partition(":")
        if not size.removeprefix("-").isdigit():
            raise ValueError(f"mesh is {text!r}, expected AXIS:SIZE or AXIS:SIZE+AXIS:SIZE")
        sizes[axis] = int(size)
    return sizes


def read_settings(gen_kwargs: Mapping[str, Any], where: str) -> Settings:
    """A task's generation_kwargs; ValueError for what greedy decoding cannot do."""
    if unknown := [name for name in gen_kwargs if name not in KNOWN]:
        raise ValueError(
            f"{where}: generation_kwargs has {unknown[0]!r}, known: {', '.join(KNOWN)}"
        )
    for name in NOT_OURS:
        if name in gen_kwargs:
            message = f"{where}: {name} is LLaVA's; our pictures are as the checkpoint says"
            warnings.warn(message, stacklevel=2)
    changed = {n: gen_kwargs[n] for n, same in GREEDY.items() if gen_kwargs.get(n, same) != same}
    temperature = float(gen_kwargs.get("temperature") or 0)
    if gen_kwargs.get("do_sample", True) and temperature > 0 and gen_kwargs.get("top_k") != 1:
        changed["temperature"] = temperature
    if changed:
        name, value = next(iter(changed.items()))
        raise ValueError(
            f"{where}: {name} is {value}, but answers are greedy here; "
            f"--gen_kwargs temperature=0,num_beams=1 asks for that"
        )
    new = gen_kwargs.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    if not isinstance(new, int | float) or new != int(new) or new < 1:
        raise ValueError(f"{where}: max_new_tokens is {new!r}, expected a number of at least 1")
    ends = gen_kwargs.get("until") or ()
    ends = (ends,) if isinstance(ends, str) else tuple(ends)
    if not all(isinstance(end, str) for end in ends):
        raise ValueError(f"{where}: until is {ends!r}, expected strings")
    return Settings(int(new), tuple(end for end in ends if end))


def read_messages(messages: Sequence[Mapping], where: str) -> tuple[list, list]:
    """lmms-eval's messages -> ((role, text) with `<image>` where a picture stands, pictures).

    A placeholder that stands in a text already is taken out, as the original's runners do.
    ValueError for what is neither text nor picture, and for a system message.
    """
    turns, pictures = [], []
    for message in messages:
        if message["role"] not in ("user", "assistant"):
            raise ValueError(f"{where}: a {message['role']} message; the template brings its own")
        content, text = message["content"], ""
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                text += part["text"].replace(IMAGE, "")
            elif part["type"] == "image":
                pictures.append(_rgb(part["url"]))
                text += f"{IMAGE}\n"
            else:
                raise ValueError(f"{where}: found {part['type']}, expected text and images alone")
        turns.append((message["role"], text.strip()))
    return turns, pictures


def _rgb(picture: Any):
    """A PIL picture in RGB; a path is read later."""
    from mgm_jax.data.images import to_rgb

    return picture if isinstance(picture, str | os.PathLike) else to_rgb(picture)


def until(text: str, ends: Sequence[str]) -> str:
    """The text in front of the first of `ends`."""
    for end in ends:
        text = text.partition(end)[0]
    return text.strip()


def batches(wanted: Sequence[Settings], size: int) -> Iterator[tuple[Settings, list[int]]]:
    """Places of up to `size` requests with the same settings, in their order."""
    groups: dict[Settings, list[int]] = {}
    for i, settings in enumerate(wanted):
        groups.setdefault(settings, []).append(i)
    for settings, places in groups.items():
        for start in range(0, len(places), size):
            yield settings, places[start : start + size]
