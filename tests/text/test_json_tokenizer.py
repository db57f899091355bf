import json
import pickle

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mgm_jax.text import JsonTokenizer, load_tokenizer

TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=20),
        st.sampled_from(["  ", "\n\n", " 12", "😀", "漢龘", "é", "ﬁ", "<|eot_id|>"]),
    ),
    max_size=5,
).map("".join)


def file(**changes):
    """A small byte-level tokenizer.json."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(["the cat sat on the mat and that was that"] * 4, trainer)
    return json.dumps(json.loads(t.to_str()) | changes).encode()


BOS = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {
        "<|begin_of_text|>": {
            "id": "<|begin_of_text|>",
            "ids": [0],
            "tokens": ["<|begin_of_text|>"],
        }
    },
}


def test_facts():
    t = JsonTokenizer(file())
    assert (t.bos_id, t.eos_id, t.pad_id, t.unk_id) == (0, 1, 1, -1)
    assert not t.add_bos and not t.legacy
    assert t.special_tokens == {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|eot_id|>": 2}
    assert t.vocab_size == 1 + max(tokenizers.Tokenizer.from_buffer(file()).get_vocab().values())
    assert t.encode("a cat<|eot_id|>")[-1] == 2
    assert t.encode("cat", add_bos=True) == [0, *t.encode("cat")]


def test_the_post_processor_says_whether_bos_is_added():
    t = JsonTokenizer(file(post_processor=BOS))
    assert t.add_bos and t.encode("cat")[0] == 0 and t.encode_with_offsets("cat")[0][0] != 0
    assert not JsonTokenizer(file(post_processor=BOS), add_bos=False).add_bos


def test_spans_are_not_trimmed_and_padding_is_ignored():
    trim = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    padding = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|begin_of_text|>",
    }
    t = JsonTokenizer(file(post_processor=trim, padding=padding))
    ids, spans = t.encode_with_offsets("a the")
    assert [("a the")[a:b] for a, b in spans][:2] == ["a", " the"[: spans[1][1] - 1]]
    assert len(ids) < 50


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=TEXT)
def test_spans_cover_the_text_and_decode_undoes_encode(text):
    t = _SMALL
    ids, spans = t.encode_with_offsets(text)
    assert t.decode(ids, skip_special=False) == text
    starts = [start for start, _ in spans]
    assert starts == sorted(starts)
    covered = 0
    for start, end in spans:
        assert start <= covered <= max(end, covered)  # no gap
        covered = max(covered, end)
    assert covered == len(text)
    assert "<|eot_id|>" not in t.decode(ids)


_SMALL = JsonTokenizer(file())


@pytest.mark.parametrize("name", ["gemma_fast", "llama3_bos", "llama2_fast"])
def test_real_vocabularies_cover_the_text(named, name):
    t, text = named(name), "é漢 😀 a  b1\n\n\n 龘龘 done"
    ids, spans = t.encode_with_offsets(text)
    assert t.decode(ids) == text
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert {n for start, end in spans for n in range(start, end)} == set(range(len(text)))


def test_both_kinds_of_one_vocabulary_agree(named):
    fast, slow = named("llama2_fast"), named("llama2_slow_legacy_true")
    for text in ("A red car.", "  two  spaces", "<s>a</s>b", "12\n\nx 龘", "", "É"):
        assert fast.encode(text) == slow.encode(text)


def test_added_tokens():
    t = JsonTokenizer(file()).with_tokens(["<im_patch>", "<|eot_id|>", "<im_start>"])
    own = t.vocab_size - 2
    assert (t.token_id("<im_patch>"), t.token_id("<im_start>")) == (own, own + 1)
    assert t.special_tokens["<|eot_id|>"] == 2
    ids, spans = t.encode_with_offsets("a<im_start> <im_patch>")
    assert own + 1 in ids and ids[-1] == own and spans[-1] == (12, 22)
    assert t.decode(ids) == "a "
    assert t.token_id("<nothing>") is None


def test_save_load_and_pickle(tmp_path):
    t = JsonTokenizer(file(), add_bos=True, eos_id=2, pad_id=1).with_tokens(["<im_patch>"])
    t.save(tmp_path / "tokenizer")
    for other in (load_tokenizer(tmp_path / "tokenizer"), pickle.loads(pickle.dumps(t))):
        assert isinstance(other, JsonTokenizer)
        assert (other.add_bos, other.bos_id, other.eos_id, other.pad_id) == (True, 0, 2, 1)
        assert other.encode("the cat<im_patch> 😀") == t.encode("the cat<im_patch> 😀")
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json: no such file"):
        load_tokenizer(tmp_path / "tokenizer")


def test_bad_files_and_arguments(tmp_path):
    for bad in (b"", b"{", b"[]", b"{}", b"\xff\xfe", file(model={"type": "Nothing"})):
        (tmp_path / "tokenizer.json").write_bytes(bad)
        with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer.json \(\d+ bytes"):
            JsonTokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match="x.json: no such file"):
        JsonTokenizer.from_file(tmp_path / "x.json")
    t = JsonTokenizer(file())
    with pytest.raises(ValueError, match=f"token id {t.vocab_size} at position 1"):
        t.decode([5, t.vocab_size])
    with pytest.raises(ValueError, match="-200"):
        t.decode([-200])
    with pytest.raises(ValueError, match="not valid Unicode"):
        t.encode("\ud83d")
    with pytest.raises(ValueError, match="pad_id 9999 is not in"):
        JsonTokenizer(file(), pad_id=9999)
    with pytest.raises(ValueError, match="'<x>' has id 7; the vocabulary gives it"):
        JsonTokenizer(file(), special_tokens={"<x>": 7})
    plain = json.loads(file())
    plain["added_tokens"] = []
    with pytest.raises(ValueError, match="expected a pad_id"):
        JsonTokenizer(json.dumps(plain).encode())
    with pytest.raises(ValueError, match="defines no bos token"):
        JsonTokenizer(json.dumps(plain).encode(), add_bos=True, pad_id=0)


def test_bytes_of_a_piece():
    t = JsonTokenizer(file())
    found = [t.piece(i) for i in t.encode("the  é\n\x7f<|eot_id|>")]
    assert "".join(found) == "the  \\xc3\\xa9\n\x7f<|eot_id|>"


@pytest.mark.parametrize("name", ["llama2_fast", "gemma_fast", "llama3_bos"])
def test_the_piece_of_an_id(name, named):
    t = named(name)
    for text in ("Hi  é\n12</s>", "a<|eot_id|>b<eos>\t."):
        found = "".join(t.piece(i) for i in t.encode(text, add_bos=False))
        assert found.removeprefix(" ") == text
    gap = t.replace(special_tokens={"<x>": t.vocab_size})
    assert gap.piece(t.vocab_size) == "<x>"
    with pytest.raises(ValueError, match=f"token id {t.vocab_size} .*not in"):
        t.piece(t.vocab_size)
