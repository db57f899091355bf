"""All answers of some requests: through an engine of slots, or by beam search one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax import numpy as jnp

from mgm_jax.generate.beams import beam_search
from mgm_jax.generate.engine import Engine
from mgm_jax.generate.prompts import Request, build_prompts
from mgm_jax.generate.sampling import Sampling, request_keys
from mgm_jax.generate.text_stream import TextStream
from mgm_jax.generate.tickets import Answer
from mgm_jax.text import get_template, stop_rule

Item = tuple[Request, Sampling, int]  # the number tells draws of one seed apart
SHORTEST = 128  # tokens of a slot; longer ones are powers of two, so that few shapes compile


def answers(model, items: Sequence[Item], *, slots: int, cli_eos: str = "family"):
    """Yields the Answer to each request in order, or the exception that ended it.

    model: an `api.LoadedModel`; slots: answers at a time.
    """
    drawn = [i for i in items if i[1].num_beams == 1]
    engine = engine_for(model, drawn, slots, cli_eos) if drawn else None
    found = engine.answers(drawn) if drawn else iter(())
    for item in items:
        yield next(found) if item[1].num_beams == 1 else _searched(model, item, cli_eos)


def engine_for(model, items: Sequence[Item], slots: int, cli_eos: str) -> Engine:
    """The model's engine, or a new one where the old one is too small for these requests."""
    slots, longest = min(slots, len(items)), SHORTEST
    for request, sampling, _ in items:
        try:
            needed = len(model.encode(request)) + sampling.max_new_tokens
        except ValueError:  # the engine will say so
            continue
        longest = max(longest, 2 ** (needed - 1).bit_length())
    old = model.engine
    if old and old.cli_eos == cli_eos:
        if old.device.count >= slots and old.max_length >= longest:
            return old
        slots, longest = max(slots, old.device.count), max(longest, old.max_length)
    if old:
        old.close()
    how = {"slots": slots, "max_length": longest, "cli_eos": cli_eos, "mesh": model.mesh}
    model.engine = Engine(model, **how)
    return model.engine


def _searched(model, item: Item, cli_eos: str) -> Answer | Exception:
    """A request by beam search; with a temperature, by beam sampling."""
    request, sampling, number = item
    template = get_template(model.template)
    stop_ids, stop_strings = stop_rule(template, model.tokenizer, cli_eos)
    draws = {}
    if sampling.temperature > 0:
        names = ("temperature", "top_p", "top_k")
        draws = {n: jnp.asarray(getattr(sampling, n)) for n in names}
        draws["keys"] = request_keys([sampling.seed], [number])
    try:
        batch = build_prompts([request], model.module, model.tokenizer, template, **model.prompts)
        tokens = beam_search(
            model.module,
            model.params,
            batch,
            new=sampling.max_new_tokens,
            stop=tuple(sorted(stop_ids)),
            beams=sampling.num_beams,
            **draws,
        )
    except (ValueError, OSError) as error:
        return error
    ids = [int(i) for i in np.asarray(tokens)[0] if i >= 0]

    def text(ids):
        return model.tokenizer.decode([i for i in ids if i not in stop_ids])

    written = TextStream(text, (*stop_strings, *sampling.stop))
    written.push(ids)
    written.finish()
    stopped = written.stopped or ids[-1] in stop_ids
    return Answer(
        text=written.text,
        ids=tuple(written.ids),
        finish="stop" if stopped else "length",
        prompt_tokens=int((batch["segments"] > 0).sum()),
        reused_tokens=0,
        logprobs=None,
        margins=(),
    )
