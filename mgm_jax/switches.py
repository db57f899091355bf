"""Where the original can be followed or put right: every row of MGM_SPEC appendix D, as data.

`faithful` is what the original does, `fixed` what it should have done, `default` what happens when
nobody says. `where` is who reads a switch:

    text      `encode_record(**switches)`; the `switches` of a training config
    training  the `switches` of a training config
    optim     `optim.clip` of a training config
    model     `load(switches=...)`; the `switches` of a training or eval config
    load      `load(switches=...)`, the `switches` of an eval config: how prompts are made
    chat      `mgm-jax chat --switch NAME=VALUE`
    eval      the `switches` of an eval config
    serve     what does not exist yet: asking for such a switch is an error

`faithful=True` in any of these places takes the left column of all the switches that act there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Switch(NamedTuple):
    """One row. `where` may be several places; `more`: values beside the three, None for any number
    from 0 to below 1."""

    name: str
    where: str
    faithful: Any
    fixed: Any
    default: Any
    more: tuple | None = ()

    def check(self, value: Any, prefix: str = "") -> None:
        """ValueError for a value that the switch has not; its name stands behind `prefix`."""
        known = list(dict.fromkeys((self.default, self.faithful, self.fixed, *(self.more or ()))))
        same = [v for v in known if v == value and isinstance(value, bool) == isinstance(v, bool)]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not same and not (self.more is None and number and 0 <= value < 1):
            expected = f"one of {known}" if self.more is not None else "a number in [0, 1)"
            raise ValueError(f"{prefix}{self.name} is {value!r}, expected {expected}")


FUTURE = ("serve",)
SWITCHES = (
    # The role in the header of llama_3's answers: the released weights were trained with "system".
    Switch("llama3_assistant_header", "text", "system", "assistant", "system"),
    # "release": as when MGM-8B was trained, with one bos in front in any case and without the
    # first token behind each picture (MGM_SPEC 5.6); masks are then the template's.
    Switch("llama3_released_prompt", "text load", "current", "release", "current"),
    # Gemma's GELU; None: what the checkpoint's config says, exact unless it has another activation.
    Switch("gemma_act", "model", "erf", "tanh", None),
    # Gemma's embedding scale: the exact factor, or rounded to the model's dtype first; None: ditto.
    Switch("gemma_scale_rounding", "model", "exact", "rounded", None),
    # Largest global norm of the gradients.
    Switch("grad_clip", "optim", None, 1.0, 1.0),
    # Rate of stochastic depth in ConvNeXt while training, though it is frozen (MGM_SPEC 1.4).
    Switch("frozen_tower_drop_path", "training", 0.1, 0.0, 0.0, None),
    # "span": loss on the template's answers. "mask_sample": the original measures each round again
    # and a sample whose lengths do not add up carries no loss (MGM_SPEC 5.5).
    Switch("mismatch_policy", "text", "mask_sample", "span", "span"),
    # "tokens": mean over all weighted tokens of a batch. "microbatch": mean over micro-batches of
    # `data.microbatch` rows of their own token means (MGM_SPEC 2.5).
    Switch("loss_reduction", "training", "microbatch", "tokens", "tokens"),
    # A (micro-)batch without any loss: NaN, which stops the run, or 0.
    Switch("nan_loss_on_empty", "training", True, False, False),
    # What ends an answer: the tokenizer's eos alone, or all that the template names.
    Switch("cli_eos", "chat", "tokenizer", "family", "family"),
    # The template that MGM-8B talks in (MGM_SPEC 7.3).
    Switch("cli_auto_template", "chat", "vicuna_v1", "llama_3", "llama_3"),
    # Where a worker puts OCR text and <GEN> (MGM_SPEC 7.7).
    Switch("worker_insert", "serve", "reference", "before_header", "before_header"),
    # How MMMU is answered (MGM_SPEC 8.5).
    Switch("mmmu_decode", "eval", "beam_sample", "greedy", "greedy"),
    # Several pictures in a record. False: those of one turn become one in the text, as in the
    # original, and a training run refuses such a record by name.
    Switch("multi_image_training", "text", False, True, True),
    # A prompt beyond tokenizer_model_max_length: cut in silence (MGM_SPEC 2.4), or refused, or used
    # with a warning.
    Switch("infer_truncate", "load", "cut", "error", "error", ("warn",)),
    # Periods that TextVQA's scorer removes from an answer; None: all (MGM_SPEC 8.2). Scores are to
    # equal the original's.
    Switch("m4c_period_count", "eval", 32, None, 32),
    # Beside appendix D. "refuse": a record that does not fit is an error. "accept": nothing about
    # pictures or empty turns is checked, "<image>" is a word in a record without a picture, what is
    # too long is cut.
    Switch("input_policy", "text", "accept", "refuse", "refuse"),
)
BY_NAME = {s.name: s for s in SWITCHES}


def choose(
    where: str | tuple[str, ...],
    faithful: bool = False,
    chosen: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> dict[str, Any]:
    """All switches that act in `where` -> their values: `chosen`, else the faithful or the default.

    ValueError for a name that is unknown, acts elsewhere or is not implemented yet, and for a value
    that the switch has not. `prefix` stands in front of names in messages.
    """
    places = (where,) if isinstance(where, str) else where
    here = {s.name: s for s in SWITCHES if set(places) & set(s.where.split())}
    chosen = dict(chosen or {})
    for name, value in chosen.items():
        if name not in BY_NAME:
            raise ValueError(f"unknown switch {prefix + name!r}, known: {', '.join(here)}")
        if name not in here:
            place = BY_NAME[name].where
            later = " is not implemented yet: it" if place in FUTURE else ""
            raise ValueError(
                f"switch {prefix + name!r}{later} belongs to {place}, known here: {', '.join(here)}"
            )
        here[name].check(value, prefix)
    values = {s.name: s.faithful if faithful else s.default for s in here.values()}
    return values | chosen
