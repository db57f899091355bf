import json
import pathlib

import pytest

from mgm_jax.text import (
    TEMPLATES,
    Segment,
    Turn,
    encode,
    encode_prompt,
    get_template,
    images_first,
    record_images,
    render,
    render_prompt,
    stop_rule,
    turns_from_record,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokens"
QUESTION, ANSWER = Turn("user", "<image>\nWhat is this?"), Turn("assistant", "A cat.")
OPEN = {
    "one_open": [QUESTION],
    "two_rounds_open": [QUESTION, ANSWER, Turn("user", "Color?")],
}
CLOSED = [
    Turn("user", "Hi"),
    Turn("assistant", "Hello"),
    Turn("user", "Bye"),
    Turn("assistant", "Ciao"),
]


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def joined(segments):
    return "".join(segment.text for segment in segments)


@pytest.mark.parametrize("name", golden("conv_prompts"))
def test_rendered_texts_equal_the_originals(name):
    prompts, template = golden("conv_prompts")[name]["prompts"], TEMPLATES[name]
    for case, turns in OPEN.items():
        if isinstance(prompts[case], dict):  # the original raises: one question is all it takes
            with pytest.raises(ValueError, match="expected one question"):
                render_prompt(template, turns)
        else:
            assert render_prompt(template, turns) == prompts[case]
    if isinstance(prompts["closed"], dict):
        with pytest.raises(ValueError, match="expected one question"):
            render(template, CLOSED)
    else:
        assert joined(render(template, CLOSED)) == prompts["closed"]


@pytest.mark.parametrize("case", golden("inference_prompts"), ids=lambda case: case["tokenizer"])
def test_inference_prompts(named, case):
    template, turns = get_template(case["conv"]), [Turn("user", case["question"])]
    assert render_prompt(template, turns) == case["prompt"]
    assert encode_prompt(template, turns, named(case["tokenizer"])) == case["input_ids"]


@pytest.mark.parametrize("case", golden("tokenizer_image_token"), ids=lambda c: c["tokenizer"])
def test_ids_between_placeholders(named, case):
    ids, mask = encode([Segment(case["prompt"], False)], named(case["tokenizer"]))
    assert ids == case["input_ids"] and not any(mask)


def test_registry():
    """Every name of the original is there, and what differs in name only is one template."""
    assert TEMPLATES.keys() == golden("conv_prompts").keys() | {"llama_3_assistant"}
    assert TEMPLATES["v0"] is TEMPLATES["default"] is TEMPLATES["llava_v0"]
    assert all(get_template(t.name) is t for t in TEMPLATES.values())


def test_segments_say_what_carries_loss():
    segments = render(TEMPLATES["v1"], [QUESTION, ANSWER])
    assert [s.text for s in segments if s.carries_loss] == [" A cat.</s>"]
    assert joined(segments).endswith(" USER: <image>\nWhat is this? ASSISTANT: A cat.</s>")
    assert render(TEMPLATES["plain"], [QUESTION, ANSWER]) == (
        Segment("<image>", False),
        Segment("A cat.\n", True),
    )


def test_a_token_belongs_to_the_segment_of_its_first_character(llama2):
    t = llama2["llama2_slow_legacy_false"]
    whole = t.encode("hello", add_bos=False)
    assert len(whole) == 1
    assert encode([Segment("hel", False), Segment("lo", True)], t) == ([1, *whole], [False, False])
    assert encode([Segment("hel", True), Segment("lo", False)], t) == ([1, *whole], [False, True])


def test_what_carries_loss_in_other_formats():
    turns = [QUESTION, ANSWER, Turn("user", "Q2"), Turn("assistant", "A2")]
    for name, answers in {
        "gemma": ["A cat.<end_of_turn>\n<eos>", "A2<end_of_turn>\n<eos>"],
        "llama_3": ["A cat.<|eot_id|>", "A2<|eot_id|>"],
        "mistral_instruct": [" A cat. </s>", " A2 </s>"],
        "chatml_direct": ["A cat.<|im_end|>", "A2<|im_end|>"],
        "v0": [" A cat.###", " A2###"],
        "phi_2": [" A cat.<|endoftext|>", " A2<|endoftext|>"],
    }.items():
        assert [s.text for s in render(TEMPLATES[name], turns) if s.carries_loss] == answers


def test_stop_rule(llama2, named):
    t = llama2["llama2_slow_legacy_true"]
    assert stop_rule(TEMPLATES["v1"], t) == (frozenset({2}), ())
    assert stop_rule(TEMPLATES["plain"], t) == (frozenset({2}), ("\n",))
    assert stop_rule(TEMPLATES["chatml_direct"], t) == (frozenset({2}), ("<|im_end|>",))
    chatml = named("llama2_chatml_nobos_legacy_true")
    assert stop_rule(TEMPLATES["chatml_direct"], chatml) == (frozenset({2, 32001}), ())
    assert stop_rule(TEMPLATES["chatml_direct"], chatml, cli_eos="tokenizer") == ({2}, ())
    with pytest.raises(ValueError, match="cli_eos is 'all'"):
        stop_rule(TEMPLATES["v1"], t, cli_eos="all")


def test_llama_3_stops_at_both_ends(named):
    ids = {128001, 128009}
    assert stop_rule(TEMPLATES["llama_3"], named("llama3_bos")) == (ids, ())


@pytest.mark.parametrize(
    "text, moved, collapsed",
    [
        ("Look <image> here", "<image>\nLook  here", "<image>\nLook  here"),
        ("<image>", "<image>", "<image>"),
        ("a <image><image> b\n", "<image>\n<image>\na  b", "<image>\na  b"),
        (" no picture ", " no picture ", " no picture "),
    ],
)
def test_images_first(text, moved, collapsed):
    assert images_first(text) == moved
    assert images_first(text, collapse=True) == collapsed


def record(*messages, **fields):
    speakers = {"h": "human", "g": "gpt"}
    turns = [{"from": speakers.get(who, who), "value": value} for who, value in messages]
    return {"conversations": turns, **fields}


def test_turns():
    assert turns_from_record(record(("g", "Welcome"), ("h", "Hi"), ("g", "Yo"))) == (
        Turn("user", "Hi"),
        Turn("assistant", "Yo"),
    )


@pytest.mark.parametrize(
    "bad, message",
    [
        ({}, "conversations is None"),
        (["a"], "found a list, expected a dict"),
        ({"conversations": []}, r"conversations is \[\]"),
        ({"conversations": "hello"}, "conversations is 'hello'"),
        ({"conversations": ["hello"]}, r"conversations\[0\] is from 'hello'"),
        (record(("h", "a"), ("system", "b")), r"conversations\[1\] is from 'system'.*'gpt'"),
        (record(("h", "a"), ("g", None)), r"conversations\[1\].value is None"),
        (record(("h", "a"), ("h", "b")), "turn 1 is the role 'user', expected 'assistant'"),
        (record(("g", "a"), ("g", "b")), "turn 0 is the role 'assistant', expected 'user'"),
        (record(("g", "a")), "no user turn"),
    ],
)
def test_bad_conversations(bad, message):
    with pytest.raises(ValueError, match=f"^train.json 7: {message}"):
        turns_from_record(bad, where="train.json 7")


def test_record_images():
    assert record_images({}) == record_images({"image": None}) == []
    assert record_images({"image": "a.jpg"}) == ["a.jpg"]
    assert record_images({"image": ["a.jpg", "b.jpg"]}) == ["a.jpg", "b.jpg"]
    for bad in ("", [], 3, ["a.jpg", None]):
        with pytest.raises(ValueError, match="^r: image is"):
            record_images({"image": bad}, "r")


def test_bad_rendering():
    with pytest.raises(ValueError, match="unknown chat template 'v2'; known: plain, v1, gemma"):
        get_template("v2")
    with pytest.raises(ValueError, match="has to follow the user"):
        render_prompt(TEMPLATES["v1"], [QUESTION, ANSWER])
    with pytest.raises(ValueError, match="turn 0 is the role 'assistant'"):
        render(TEMPLATES["v1"], [ANSWER])
    with pytest.raises(ValueError, match="template llama_2: the first turn is empty"):
        render(TEMPLATES["llama_2"], [Turn("user", ""), ANSWER])
