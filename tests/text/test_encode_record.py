import json
import logging
import pathlib
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mgm_jax.text import IGNORE, IMAGE_ID, encode_record

FALSE, TRUE = "llama2_slow_legacy_false", "llama2_slow_legacy_true"
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokens"
FORMATS = ("plain", "v1", "gemma", "llama_3", "mistral_instruct", "llama_2", "chatml_direct")
GOLDENS = {name: json.loads((GOLDEN / f"preprocess_{name}.json").read_text()) for name in FORMATS}
RECORDS = [
    pytest.param(
        r,
        GOLDENS[name]["cases"][r["case"]],
        id=f"{name}-{r['tokenizer']}-{r['case']}-{r['model_max_length']}",
    )
    for name in GOLDENS
    for r in GOLDENS[name]["records"]
]
# Tokenizers for which the original's lengths never add up over several rounds, or at all.
SLIPPING = {
    ("v1", "llama2_fast"),
    ("llama_3", "llama3_nobos"),
    ("chatml_direct", "llama2_chatml_nobos_legacy_false"),
    ("chatml_direct", "llama2_slow_legacy_false"),
    ("chatml_direct", "llama2_slow_legacy_true"),
}
ENDS = r" ?</s>|<\|im_end\|><?|<\|eot_id\|>"  # what follows an answer
STRICT_ERRORS = {  # case: what the strict mode says
    "empty_answer": "turn 1 .assistant. is empty",
    "img_but_no_token": "found 0 <image> in the text, expected 1",
    "literal_image_token_text_only": "found 1 <image> in the text, expected 0",
}


@pytest.mark.parametrize("want, case", RECORDS)
def test_faithful_equals_the_original(named, want, case):
    tokenizer = named(want["tokenizer"])
    if want["version"] != "plain":  # captions have no padding to count
        assert tokenizer.pad_id == want["pad_token_id"]
    ids, labels = encode_record(
        case, want["version"], tokenizer, want["model_max_length"], faithful=True
    )
    assert (ids, labels) == (want["input_ids"], want["labels"])


@pytest.mark.parametrize("want, case", RECORDS)
def test_strict_equals_the_original_where_the_input_is_sound(named, want, case):
    template, limit = want["version"], want["model_max_length"]
    tokenizer = named(want["tokenizer"])
    if message := STRICT_ERRORS.get(want["case"]):
        with pytest.raises(ValueError, match=f"^x: {message}"):
            encode_record(case, template, tokenizer, limit, where="x")
        return
    if limit == 64:
        with pytest.raises(ValueError, match="^x: .* tokens, expected at most 64"):
            encode_record(case, template, tokenizer, limit, where="x")
    ids, labels = encode_record(case, template, tokenizer, None)
    if limit == 64 and "image" not in case:  # the original cuts it
        ids, labels = ids[:64], labels[:64]
    assert ids == want["input_ids"]
    slips = (template, want["tokenizer"]) in SLIPPING and "image" in case
    if "WARNING" in want["stdout"] or (slips and limit == 64):
        carried = [i for i in labels if i != IGNORE]
        answers = [t["value"] for t in case["conversations"] if t["from"] == "gpt"]
        if case["conversations"][0]["from"] == "gpt":
            answers = answers[1:]
        texts = [t.strip() for t in re.split(ENDS, tokenizer.decode(carried, skip_special=False))]
        assert texts == [*(t.strip() for t in answers), ""]
    else:
        assert labels == want["labels"]


def test_how_many_goldens_there_are():
    dead = [r for g in GOLDENS.values() for r in g["records"] if "WARNING" in r["stdout"]]
    assert (len(RECORDS), len(dead)) == (178, 54)


def chat(*texts, **fields):
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"conversations": turns, **fields}


# The original's arithmetic for v1, restated from MGM_SPEC 5.5 as an independent reference.
def original_v1(record, tokenizer, max_len):
    def tok(text):
        ids = [tokenizer.bos_id]
        for n, piece in enumerate(text.split("<image>") if "image" in record else [text]):
            ids += ([IMAGE_ID] if n else []) + tokenizer.encode(piece, add_bos=False)
        return ids

    text = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
    )
    for n, turn in enumerate(record["conversations"]):
        role, end = ("USER", " ") if n % 2 == 0 else ("ASSISTANT", "</s>")
        value = turn["value"]
        if "image" in record and "<image>" in value:
            value = ("<image>\n" + value.replace("<image>", "").strip()).strip()
        text += f"{role}: {value}{end}" if value else f"{role}:"
    ids = tok(text)
    if "image" not in record:
        ids = ids[:max_len]
    labels, at = list(ids), 1
    labels[:1] = [IGNORE]
    for n, part in enumerate(text.split("</s>")):
        halves = part.split(" ASSISTANT: ")
        if not part or len(halves) != 2:
            break
        shift = 1 if n and not tokenizer.legacy else 0
        skip = len(tok(halves[0] + " ASSISTANT: ")) - 2 - shift
        labels[at : at + skip] = [IGNORE] * len(labels[at : at + skip])
        at += len(tok(part)) - shift
    labels[at:] = [IGNORE] * len(labels[at:])
    if at < max_len and at != sum(i != tokenizer.pad_id for i in ids):
        labels = [IGNORE] * len(labels)
    return ids, labels


CHARS = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")
TEXT = st.lists(
    st.one_of(st.text(CHARS, max_size=12), st.sampled_from(["12", "\n", "  ", "😀", "漢龘", "é!"])),
    min_size=1,
    max_size=4,
).map("".join)
ODD = st.one_of(TEXT, st.sampled_from(["", " ", "a</s>b", "x ASSISTANT: y", "<unk>", "ASSISTANT:"]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.tuples(ODD, ODD), min_size=1, max_size=3),
    name=st.sampled_from([FALSE, TRUE]),
    image=st.booleans(),
    max_len=st.sampled_from([30, 48, 60, 80, 2048]),
)
def test_faithful_follows_the_original_on_any_text(llama2, texts, name, image, max_len):
    flat = [text for pair in texts for text in pair]
    record = chat("<image>" + flat[0], *flat[1:], image="a.jpg") if image else chat(*flat)
    ids, labels = original_v1(record, llama2[name], max_len)
    # A picture in an answer: its placeholder is no target, as the original's model decides later.
    labels = [IGNORE if label == IMAGE_ID else label for label in labels]
    got = encode_record(record, "v1", llama2[name], max_len, faithful=True)
    assert got == (ids, labels)


def runs(labels):
    """The stretches of supervised labels."""
    out, open_run = [], False
    for label in labels:
        if label == IGNORE:
            open_run = False
        elif open_run:
            out[-1].append(label)
        else:
            out.append([label])
            open_run = True
    return out


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    name=st.sampled_from([FALSE, TRUE, "small"]),
)
def test_labels_decode_to_the_answers(llama2, small, texts, name):
    reserved = ("<image>", "</s>", "<s>", "<unk>")
    assume(all(t.strip() and not any(r in t for r in reserved) for pair in texts for t in pair))
    tokenizer = {**llama2, "small": small}[name]
    flat = [text for pair in texts for text in pair]
    ids, labels = encode_record(
        chat("<image>\n" + flat[0], *flat[1:], image="a.jpg"), "v1", tokenizer, None
    )
    assert ids.count(IMAGE_ID) == 1 and ids.count(tokenizer.bos_id) == 1
    assert all(label in (i, IGNORE) for i, label in zip(ids, labels, strict=True))
    supervised = runs(labels)
    assert [tokenizer.decode(run) for run in supervised] == [answer for _, answer in texts]
    assert all(run[-1] == tokenizer.eos_id for run in supervised)

    ids, labels = encode_record(chat("<image>", texts[0][1], image="a"), "plain", tokenizer, None)
    assert ids[:2] == [tokenizer.bos_id, IMAGE_ID] and ids[2:] == labels[2:]
    assert tokenizer.decode(labels[2:]) == texts[0][1] + "\n"


def test_appendix_a_vectors(llama2):
    t2 = chat("What is this?\n<image>", "A cat.", "Color?", "12 black", image="a.jpg")
    text = chat("What is this?", "A cat.", "Color?", "12 black")
    t1 = chat("<image>\nDescribe.", "a cat on a mat", image="a.jpg")
    for record, template, length, spans in [
        (t2, "v1", 65, [(47, 51), (60, 65)]),
        (text, "v1", 61, [(43, 47), (56, 61)]),
        (t1, "plain", 8, [(2, 8)]),
    ]:
        ids, labels = encode_record(record, template, llama2[FALSE], 2048)
        inside = {n for start, end in spans for n in range(start, end)}
        assert len(ids) == length
        assert {n for n, label in enumerate(labels) if label != IGNORE} == inside


def test_several_pictures(llama2):
    record = chat("<image> and <image>: differ?", "Yes.", "And <image>?", "No.", image=["a"] * 3)
    ids, _ = encode_record(record, "v1", llama2[FALSE], None)
    assert ids.count(IMAGE_ID) == 3
    ids, _ = encode_record(record, "v1", llama2[FALSE], None, faithful=True)
    assert ids.count(IMAGE_ID) == 2  # the original merges those of one turn
    with pytest.raises(ValueError, match="found 3 <image> in the text, expected 2"):
        encode_record(record | {"image": ["a", "b"]}, "v1", llama2[FALSE], None)


def test_truncation(llama2):
    record = chat("Hi", "Hello there, my friend.", "Bye", "Farewell.")
    ids, labels = encode_record(record, "v1", llama2[FALSE], None)
    cut = encode_record(record, "v1", llama2[FALSE], 50, truncate=True)
    assert cut == (ids[:50], labels[:50])
    assert encode_record(record, "v1", llama2[FALSE], len(ids)) == (ids, labels)
    with pytest.raises(ValueError, match="^q: no answer token within the first 20"):
        encode_record(record, "v1", llama2[FALSE], 20, truncate=True, where="q")
    seen = chat("<image>\nHi", "Hello", "<image>\nBye", "Ciao", image=["a", "b"])
    ids, _ = encode_record(seen, "v1", llama2[FALSE], None)
    second = len(ids) - 1 - ids[::-1].index(IMAGE_ID)
    with pytest.raises(ValueError, match="loses a picture"):
        encode_record(seen, "v1", llama2[FALSE], second, truncate=True)
    encode_record(seen, "v1", llama2[FALSE], second + 1, truncate=True)


def test_dead_samples_are_reported(llama2, caplog):
    with caplog.at_level(logging.WARNING):
        encode_record(chat("Hi", ""), "v1", llama2[FALSE], 2048, faithful=True, where="row 3")
    assert "row 3: no token of this sample carries loss" in caplog.text


@pytest.mark.parametrize(
    "record, options, message",
    [
        (chat("Hi"), {}, "turn 0 is the last and has no answer"),
        (chat("Hi", "Yo", "Bye"), {}, "turn 2 is the last and has no answer"),
        (chat(" ", "Yo"), {}, r"turn 0 \(user\) is empty"),
        (chat("Hi", " \n"), {}, r"turn 1 \(assistant\) is empty"),
        (chat("Hi", "Yo", image="a"), {}, "found 0 <image> in the text, expected 1"),
        (chat("<image>", "<image>", image="a"), {}, r"turn 1 \(assistant\) holds <image>"),
        (chat("Hi", "Yo", image=""), {}, "image is ''"),
        (chat("Hi", "Yo"), {"template": "plain"}, "template plain takes one question"),
        (
            chat("<image>", "a", "b", "c", image="a"),
            {"template": "plain"},
            "template plain .* found 4 turns",
        ),
        (chat("Hi", "\ud83d"), {}, "cannot tokenise .* not valid Unicode"),
        ({"conversations": []}, {"faithful": True}, "conversations is"),
    ],
)
def test_bad_records(llama2, record, options, message):
    options = {"template": "v1", "max_len": 2048, **options}
    with pytest.raises(ValueError, match=f"^train.json 7: {message}"):
        encode_record(record, tokenizer=llama2[FALSE], where="train.json 7", **options)


def test_bad_options(llama2):
    with pytest.raises(ValueError, match="known: plain"):
        encode_record(chat("Hi", "Yo"), "v9", llama2[FALSE], 2048)
    with pytest.raises(ValueError, match="max_len is 0"):
        encode_record(chat("Hi", "Yo"), "v1", llama2[FALSE], 0)
    with pytest.raises(ValueError, match="no meaning with faithful"):
        encode_record(chat("Hi", "Yo"), "v1", llama2[FALSE], 9, faithful=True, truncate=True)
