"""Each switch of encode_record alone, and the label vectors of MGM_SPEC appendix A."""

import pytest

from mgm_jax.text import FAITHFUL, IGNORE, IMAGE_ID, encode_record


def chat(*texts, **fields):
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"conversations": turns, **fields}


T1 = chat("<image>\nDescribe.", "a cat on a mat", image="a.jpg")
T2 = chat("What is this?\n<image>", "A cat.", "Color?", "12 black", image="a.jpg")
VECTORS = {  # tokenizer, template, record: number of ids, spans that carry loss
    ("mistral_v1_slow_legacy_true", "mistral_instruct", "T2"): (37, [(16, 21), (31, 37)]),
    ("mistral_v1_slow_legacy_true", "plain", "T1"): (8, [(2, 8)]),
    ("gemma_fast", "gemma", "T2"): (37, [(15, 21), (31, 37)]),
    ("gemma_fast", "gemma", "T1"): (21, [(13, 21)]),
    ("llama3_bos", "llama_3", "T2"): (74, [(56, 60), (71, 74)]),
}


@pytest.mark.parametrize("key", VECTORS, ids="-".join)
@pytest.mark.parametrize("faithful", [False, True])
def test_vectors(named, key, faithful):
    tokenizer, template, record = named(key[0]), key[1], {"T1": T1, "T2": T2}[key[2]]
    if template == "gemma":
        tokenizer = tokenizer.with_tokens(["<start_of_turn>", "<end_of_turn>"])
        assert tokenizer.special_tokens["<start_of_turn>"] == 106
    ids, labels = encode_record(record, template, tokenizer, 2048, faithful=faithful)
    length, spans = VECTORS[key]
    assert len(ids) == length
    inside = {n for start, end in spans for n in range(start, end)}
    assert {n for n, label in enumerate(labels) if label != IGNORE} == inside


def test_chatml_needs_a_legacy_tokenizer_to_survive_the_original(named):
    for name, alive in (("true", True), ("false", False)):
        tokenizer = named(f"llama2_chatml_nobos_legacy_{name}")
        ids, labels = encode_record(T2, "chatml_direct", tokenizer, 2048, faithful=True)
        _, spans = encode_record(T2, "chatml_direct", tokenizer, 2048)
        kept = [i for i in spans if i != IGNORE]
        assert tokenizer.decode(kept, skip_special=False) == "A cat.<|im_end|>12 black<|im_end|>"
        assert labels == (spans if alive else [IGNORE] * len(ids))


def test_faithful_is_all_switches_at_once(llama2):
    tokenizer = llama2["llama2_slow_legacy_false"]
    for record in (T2, chat("Hi", ""), chat("Look at <image>", "It", image=["a", "b"])):
        whole = encode_record(record, "v1", tokenizer, 2048, faithful=True)
        assert whole == encode_record(record, "v1", tokenizer, 2048, **FAITHFUL)


def test_mismatch_policy(llama2):
    tokenizer = llama2["llama2_slow_legacy_false"]
    record = chat("Say ASSISTANT: now", "Done.")  # the original finds two answers in this round
    _, spans = encode_record(record, "v1", tokenizer, 2048)
    assert tokenizer.decode([i for i in spans if i != IGNORE]) == "Done."
    ids, dead = encode_record(record, "v1", tokenizer, 2048, mismatch_policy="mask_sample")
    assert dead == [IGNORE] * len(ids)
    assert (
        spans
        == encode_record(record, "v1", tokenizer, 2048, faithful=True, mismatch_policy="span")[1]
    )


def test_multi_image_training(llama2):
    tokenizer = llama2["llama2_slow_legacy_false"]
    record = chat("<image> and <image>: differ?", "Yes.", image=["a", "b"])
    ids, _ = encode_record(record, "v1", tokenizer, None)
    assert ids.count(IMAGE_ID) == 2
    ids, _ = encode_record(record, "v1", tokenizer, None, multi_image_training=False)
    assert ids.count(IMAGE_ID) == 1


def test_input_policy(llama2):
    tokenizer = llama2["llama2_slow_legacy_false"]
    record = chat("Hi", "a b c d e f g h i j k l m n o p q r s t u v w x y z")
    with pytest.raises(ValueError, match="expected at most 60"):
        encode_record(record, "v1", tokenizer, 60)
    ids, labels = encode_record(record, "v1", tokenizer, 60, input_policy="accept")
    whole = encode_record(record, "v1", tokenizer, None)
    assert (ids, labels) == (whole[0][:60], whole[1][:60])
    ids, _ = encode_record(chat("Hi", "Yo", image="a"), "v1", tokenizer, 9, input_policy="accept")
    assert len(ids) > 9  # with a picture nothing is cut


def test_llama3_assistant_header(named):
    tokenizer = named("llama3_bos")
    ids, labels = encode_record(T2, "llama_3", tokenizer, 2048)
    other, labels_too = encode_record(
        T2, "llama_3", tokenizer, 2048, llama3_assistant_header="assistant"
    )
    system, assistant = tokenizer.encode("system", False), tokenizer.encode("assistant", False)
    assert [(a, b) for a, b in zip(ids, other, strict=True) if a != b] == [
        (*system, *assistant),
        (*system, *assistant),
    ]
    assert labels == labels_too
    assert other == encode_record(T2, "llama_3_assistant", tokenizer, 2048)[0]
    assert encode_record(
        T2, "llama_3", tokenizer, 2048, faithful=True, llama3_assistant_header="assistant"
    ) == (other, labels)


@pytest.mark.parametrize("name", ["llama3_bos", "llama3_nobos"])
def test_llama3_released_prompt(named, name):
    ids, labels = encode_record(T2, "llama_3", named("llama3_bos"), 2048)
    newline = ids.index(IMAGE_ID) + 1
    assert named(name).decode([ids[newline]]) == "\n"
    del ids[newline], labels[newline]
    assert (ids, labels) == encode_record(
        T2, "llama_3", named(name), 2048, llama3_released_prompt="release"
    )


def test_released_prompt_concerns_llama_3_only(llama2):
    tokenizer = llama2["llama2_slow_legacy_false"]
    assert encode_record(T2, "v1", tokenizer, 2048) == encode_record(
        T2, "v1", tokenizer, 2048, llama3_released_prompt="release"
    )


def test_mmtag_wraps_pictures(llama2):
    tokenizer = llama2["llama2_slow_legacy_false"]
    ids, _ = encode_record(T1, "v1_mmtag", tokenizer, 2048)
    at = ids.index(IMAGE_ID)
    assert tokenizer.decode(ids[:at]).endswith("USER: <Image>")
    assert tokenizer.decode(ids[at + 1 :]).startswith("</Image>\nDescribe.")


def test_formats_with_signals_are_trained_in_another_form(llama2):
    """MGM_SPEC 5.5, legacy v0: the header and the user's words are masked but for two ids of a
    "###", everything else carries loss; the bos of each measured part shifts the masks."""
    tokenizer = llama2["llama2_slow_legacy_false"]
    record = chat("Hi", "Hello", "Bye", "Ciao")
    ids, labels = encode_record(record, "v0", tokenizer, 2048, faithful=True)
    system = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the human's questions."
    )
    turns = [
        f"### {('Human', 'Assistant')[n % 2]}: {turn['value']}\n"
        for n, turn in enumerate(record["conversations"])
    ]
    assert ids == tokenizer.encode(f"{system}\n\n{''.join(turns)}### ")
    lengths = [len(tokenizer.encode(text)) for text in (f"{system}\n\n", *turns)]
    masked, at = set(range(lengths[0])), lengths[0]
    for n, length in enumerate(lengths[1:]):
        masked |= set(range(at + 2, at + length)) if n % 2 == 0 else set()
        at += length
    assert [label == IGNORE for label in labels] == [n in masked for n in range(len(ids))]
    _, spans = encode_record(record, "v0", tokenizer, 2048)
    assert tokenizer.decode([i for i in spans if i != IGNORE]) == "Hello### Ciao###"


def test_bad_switches(llama2):
    tokenizer = llama2["llama2_slow_legacy_false"]
    with pytest.raises(ValueError, match="unknown switch 'mask', known: llama3_assistant_header"):
        encode_record(T1, "v1", tokenizer, 2048, mask=True)
    with pytest.raises(ValueError, match="switch 'cli_eos' belongs to chat, known here: llama3_"):
        encode_record(T1, "v1", tokenizer, 2048, cli_eos="family")
    for name in FAITHFUL:
        with pytest.raises(ValueError, match=f"{name} is 'odd', expected one of"):
            encode_record(T1, "v1", tokenizer, 2048, **{name: "odd"})
    with pytest.raises(ValueError, match="no meaning with"):
        encode_record(T1, "v1", tokenizer, 9, truncate=True, input_policy="accept")
