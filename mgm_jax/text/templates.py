"""Chat templates as data: the strings a conversation is rendered with (MGM_SPEC 5.1-5.3).

A template says what surrounds a turn; `text.conversation` does the rendering. Nothing here is a
function of the conversation except what the fields of `Template` can express, so a further
template is a further entry of `TEMPLATES`.
"""

import dataclasses

IMAGE_TEXT = "<image>"  # the placeholder in text
IMAGE_ID = -200  # the placeholder in token ids
IGNORE = -100  # the label of a token that carries no loss

_SYSTEM_USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


@dataclasses.dataclass(frozen=True)
class Role:
    """The strings around one turn: `header + lead + text + tail`.

    An empty turn is its bare header, and so is the open turn that a model has to fill. For the
    assistant `lead + text + tail` carries loss and the header does not: whatever follows the
    header is what the model emits.
    """

    header: str = ""
    lead: str = ""
    tail: str = ""


@dataclasses.dataclass(frozen=True)
class RoundRule:
    """How the original finds its rounds when it re-measures a rendered text (MGM_SPEC 5.5).

    The text is cut at `end`, each round at `mark`; `later_nonlegacy` is added to the token count
    of every round but the first when the tokenizer is not a legacy one. It only serves to tell
    which samples the original masks as a whole; masks are never made from it.
    """

    end: str
    mark: str
    later_nonlegacy: int = 0


@dataclasses.dataclass(frozen=True)
class Template:
    """One chat format.

    Attributes:
        name: the canonical name.
        user, assistant: the strings around a turn of that role.
        system: text in front of the first turn, its separator included.
        first_user: replaces `user` in the first turn when not None.
        caption_only: training drops the wording of the question and keeps its pictures: exactly
            one question and one answer, no header, no tail after the question.
        stop_on_eos: the tokenizer's end-of-sequence id ends an answer.
        stop: further strings that end an answer.
        original_rounds: the original's rule for dead samples; None when it has none.
    """

    name: str
    user: Role
    assistant: Role
    system: str = ""
    first_user: Role | None = None
    caption_only: bool = False
    stop_on_eos: bool = True
    stop: tuple[str, ...] = ()
    original_rounds: RoundRule | None = None


_PLAIN = Template(
    name="plain",
    user=Role(tail="\n"),
    assistant=Role(tail="\n"),
    caption_only=True,
    stop=("\n",),  # captions end with a supervised newline and no end-of-sequence token
)
_V1 = Template(
    name="v1",
    system=_SYSTEM_USER + " ",
    user=Role(header="USER:", lead=" ", tail=" "),
    assistant=Role(header="ASSISTANT:", lead=" ", tail="</s>"),
    original_rounds=RoundRule(end="</s>", mark=" ASSISTANT: ", later_nonlegacy=-1),
)

TEMPLATES: dict[str, Template] = {"plain": _PLAIN, "v1": _V1, "vicuna_v1": _V1}


def get_template(template: str | Template) -> Template:
    """The template of that name; a `Template` is returned as it is.

    Raises:
        ValueError: no template has that name; the message lists those that exist.
    """
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"unknown chat template {template!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[template]
