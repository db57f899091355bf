"""Chat templates as data: the strings a conversation is rendered with (MGM_SPEC 5.1-5.3).

A template says what surrounds a turn; `text.conversation` does the rendering. Nothing here is a
function of the conversation except what the fields of `Template` can express, so a further
template is a further entry of `TEMPLATES`.
"""

import dataclasses

IMAGE_TEXT = "<image>"  # the placeholder in text
IMAGE_ID = -200  # the placeholder in token ids
IGNORE = -100  # the label of a token that carries no loss

_SYSTEM_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
_SYSTEM_USER = _SYSTEM_HUMAN.replace("human", "user")
_SYSTEM_MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able "
    "to understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language.The visual content will be provided with the following "
    "format: <Image>visual content</Image>."
)
_SYSTEM_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_SYSTEM_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
_SYSTEM_MPT = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
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
    """How the original re-measures a rendered text to find its answers (MGM_SPEC 5.5).

    The text is cut at `end`, each round at `mark` into an instruction and an answer. From position
    `start` on, a round covers as many ids as it has tokens of its own, and the first of them, those
    of the instruction + `instruction_extra`, are masked. Both counts grow by `legacy` in every
    round when the tokenizer is a legacy one, and by `later_nonlegacy` in every round but the first
    when it is not. `grouped`: system, question and first answer form a round, then pairs do.

    It only serves `mismatch_policy="mask_sample"`; the default masks are never made from it.
    """

    end: str
    mark: str
    start: int = 1
    instruction_extra: int = 0
    later_nonlegacy: int = 0
    legacy: int = 0
    grouped: bool = False


@dataclasses.dataclass(frozen=True)
class Template:
    """One chat format.

    Attributes:
        name: the canonical name.
        user, assistant: the strings around a turn of that role.
        system: text in front of the first turn, its separator included.
        system_form: how another system text is written there, `{}` in its place (`with_system`);
            None where the format has no place for one.
        first_user: replaces `user` in the first turn when not None.
        caption_only: training drops the wording of the question and keeps its pictures: exactly
            one question and one answer, no header, no tail after the question.
        stop_on_eos: the tokenizer's end-of-sequence id ends an answer.
        stop: further strings that end an answer.
        image_text: what each placeholder of a training record is written as; a model with start
            and end tokens around pictures has `<im_start><image><im_end>`.
        original_rounds: the original's label arithmetic; None when its masks are the segments.
        original_signals: the system text of a format that the original trains in another form than
            it renders for inference (see `original.signal_text`); None for all others.
    """

    name: str
    user: Role
    assistant: Role
    system: str = ""
    system_form: str | None = None
    first_user: Role | None = None
    caption_only: bool = False
    stop_on_eos: bool = True
    stop: tuple[str, ...] = ()
    image_text: str = IMAGE_TEXT
    original_rounds: RoundRule | None = None
    original_signals: str | None = None

    def with_system(self, text: str) -> "Template":
        """This format with another system text; ValueError where it has no place for one, or for a
        text with a placeholder in it."""
        if self.system_form is None:
            raise ValueError(f"template {self.name} has no place for a system text")
        if IMAGE_TEXT in text:
            raise ValueError(f"found {IMAGE_TEXT} in a system text, expected it in turns only")
        written = self.system_form.replace("{}", text)
        if self.first_user is None:
            return dataclasses.replace(self, system=written)
        first = dataclasses.replace(self.first_user, lead=written)
        return dataclasses.replace(self, first_user=first)


def _single(name: str, system: str, **fields) -> Template:
    return Template(
        name=name,
        system=system + "###",
        system_form="{}###",
        user=Role("Human:", " ", "###"),
        assistant=Role("Assistant:", " ", "###"),
        stop=("###",),
        original_signals=system,
        **fields,
    )


def _two(name: str, system: str, end: str = "</s>", signals: bool = False, **fields) -> Template:
    rounds = RoundRule(end, " ASSISTANT: ", instruction_extra=-2, later_nonlegacy=-1)
    return Template(
        name=name,
        system=system + " ",
        system_form="{} ",
        user=Role("USER:", " ", " "),
        assistant=Role("ASSISTANT:", " ", end),
        stop=() if end == "</s>" else (end,),
        original_rounds=None if signals else rounds,
        original_signals=system if signals else None,
        **fields,
    )


def _inst(name: str, system: str = "") -> Template:
    form = "[INST] <<SYS>>\n{}\n<</SYS>>\n\n"
    return Template(
        name=name,
        system_form=form,
        first_user=Role("", form.replace("{}", system) if system else "[INST] ", " [/INST]"),
        user=Role("", "<s>[INST] ", " [/INST]"),
        assistant=Role("", " ", " </s>"),
        original_rounds=RoundRule("</s>", "[/INST] ", instruction_extra=-2),
    )


def _chatml(name: str, system: str) -> Template:
    user, assistant, end = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
    form = "<|im_start|>system\n{}" + end
    return Template(
        name=name,
        system=form.replace("{}", system),
        system_form=form,
        user=Role(user, "", end),
        assistant=Role(assistant, "", end),
        stop=(end,),
        original_rounds=RoundRule(
            end, end + assistant, start=0, instruction_extra=-1, legacy=1, grouped=True
        ),
    )


def _llama_3(name: str, answering: str) -> Template:
    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    end = "<|eot_id|>"
    return Template(
        name=name,
        system=header("system") + _SYSTEM_VISION + end,
        system_form=header("system") + "{}" + end,
        user=Role(header("user"), "", end),
        assistant=Role(header(answering), "", end),
        stop=(end, "<|end_of_text|>"),
        original_rounds=RoundRule(end, end + header(answering), instruction_extra=-1, grouped=True),
    )


_PLAIN = Template(
    name="plain",
    user=Role(tail="\n"),
    assistant=Role(tail="\n"),
    caption_only=True,
    stop=("\n",),  # captions end with a supervised newline and no end-of-sequence token
)
_GEMMA = Template(
    name="gemma",
    user=Role("<start_of_turn>user\n", "", "<end_of_turn>\n"),
    assistant=Role("<start_of_turn>model\n", "", "<end_of_turn>\n<eos>"),
    stop=("<end_of_turn>",),
    original_rounds=RoundRule("<eos>", "<start_of_turn>model\n", instruction_extra=-1),
)
_MMTAG = "<Image><image></Image>"

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        _PLAIN,
        _two("v1", _SYSTEM_USER),
        _GEMMA,
        _llama_3("llama_3", answering="system"),  # as the released weights were trained
        _llama_3("llama_3_assistant", answering="assistant"),
        _inst("mistral_instruct"),
        _chatml("chatml_direct", "Answer the questions."),
        _inst("llama_2", _SYSTEM_LLAMA_2),
        _inst("llava_llama_2", _SYSTEM_VISION),
        _chatml("mpt", _SYSTEM_MPT),
        _single("v0", _SYSTEM_HUMAN),
        _single("v0_mmtag", _SYSTEM_MMTAG, image_text=_MMTAG),
        _two("llava_v1", _SYSTEM_HUMAN),
        _two("v1_mmtag", _SYSTEM_MMTAG, image_text=_MMTAG),
        _two("phi_2", _SYSTEM_USER, end="<|endoftext|>", signals=True),
        _two("imgsp_v1", _SYSTEM_USER, signals=True),
    )
}
_ALIASES = {
    "vicuna_v1": "v1",
    "mistral_direct": "chatml_direct",
    "v0_plain": "plain",
    "default": "v0",
    "llava_v0": "v0",
}
TEMPLATES |= {alias: TEMPLATES[name] for alias, name in _ALIASES.items()}


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
