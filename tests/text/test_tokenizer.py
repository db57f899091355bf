import io
import json
import pickle
import re

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mgm_jax.text import SentencePieceTokenizer, load_tokenizer, train_tokenizer

FALSE, TRUE = "llama2_slow_legacy_false", "llama2_slow_legacy_true"
# A literal boundary mark is read as a space by sentencepiece, so it cannot come back.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=30)
MIXED = st.lists(
    st.one_of(TEXT, st.sampled_from(["</s>", "<s>", "  ", "\n", "12", "😀", "漢龘", "é", "ﬁ"])),
    max_size=6,
).map("".join)


def pieces(tokenizer, text):
    ids, spans = tokenizer.encode_with_offsets(text)
    return ids, [text[start:end] for start, end in spans]


def test_facts(llama2):
    t = llama2[FALSE]
    assert (t.vocab_size, t.unk_id, t.bos_id, t.eos_id, t.pad_id) == (32000, 0, 1, 2, 0)
    assert t.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert t.add_bos and not t.legacy and llama2[TRUE].legacy
    assert t.encode("hello world") == [1, 22172, 3186]
    assert t.encode("hello world", add_bos=False) == [22172, 3186]


def test_legacy_decides_about_text_behind_a_special_token(llama2):
    # "USER" is one piece without the dummy prefix and "▁US", "ER" with it.
    assert pieces(llama2[FALSE], "A</s>USER")[1] == ["A", "</s>", "USER"]
    assert pieces(llama2[TRUE], "A</s>USER")[1] == ["A", "</s>", "US", "ER"]
    # A text that starts with a special token gets no boundary mark of its own.
    assert llama2[FALSE].encode("</s>a") == [1, 2, 29874]
    assert llama2[TRUE].encode("</s>a") == [1, 2, 263]
    assert llama2[FALSE].encode("") == [1]


def test_offsets_are_characters(llama2):
    ids, spans = llama2[FALSE].encode_with_offsets("é漢 😀 a  b1")
    assert spans == [
        *[(0, 1), (1, 2), (2, 3)],
        *[(3, 4)] * 4,  # the four bytes of one character
        *[(4, 6), (6, 7), (7, 9), (9, 10)],
    ]
    assert len(ids) == len(spans)
    # A boundary mark that is a token of its own is empty and sits at the front.
    assert llama2[FALSE].encode_with_offsets("1")[1] == [(0, 0), (0, 1)]


def test_offsets_survive_normalisation():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["find the fish in 1 or 2 or 3"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        normalization_rule_name="nfkc",
        num_threads=1,
        minloglevel=2,
    )
    t = SentencePieceTokenizer(model.getvalue())
    text = "  ①ﬁsh"  # spaces are dropped; one character becomes "1", one becomes "fi"
    ids, spans = t.encode_with_offsets(text)
    assert t.decode(ids) == "1fish"
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert text[spans[0][0]] == "①" and spans[-1][1] == len(text)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=MIXED, name=st.sampled_from([FALSE, TRUE]))
def test_spans_tile_the_text_and_decode_undoes_encode(llama2, text, name):
    t = llama2[name]
    ids, spans = t.encode_with_offsets(text)
    assert t.decode([t.bos_id, *ids], skip_special=False) == "<s>" + text
    covered = 0
    for start, end in spans:
        assert start <= covered <= end  # no gap, no step back
        covered = end
    assert covered == len(text)
    assert t.decode(t.encode(text)) == re.sub("</s>|<s>|<unk>", "", text)


def test_added_tokens(llama2):
    added = {"<|im_start|>": 32000, "<|im_end|>": 32001}
    t = SentencePieceTokenizer(llama2[TRUE]._model, add_bos=False, special_tokens=added)
    assert t.vocab_size == 32002
    ids = t.encode("<|im_start|>user\nHi<|im_end|>")
    assert ids[0] == 32000 and ids[-1] == 32001 and 1 not in ids
    assert t.decode(ids) == "user\nHi"


def test_save_and_load(llama2, tmp_path):
    t = SentencePieceTokenizer(
        llama2[FALSE]._model, legacy=False, pad_id=2, special_tokens={"<x>": 32000}
    )
    t.save(tmp_path / "new" / "folder")
    text = "A cat.</s> 12 <x>😀"
    for other in (load_tokenizer(tmp_path / "new" / "folder"), pickle.loads(pickle.dumps(t))):
        assert (other.legacy, other.pad_id, other.vocab_size) == (False, 2, 32001)
        assert other.encode(text) == t.encode(text)


def test_unreadable_files(llama2, tmp_path):
    with pytest.raises(FileNotFoundError, match="mgm_tokenizer.json"):
        load_tokenizer(tmp_path)
    llama2[FALSE].save(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        load_tokenizer(tmp_path)
    for bad in (b"", b"no model at all"):
        (tmp_path / "tokenizer.model").write_bytes(bad)
        with pytest.raises(ValueError, match="tokenizer.model: not a sentencepiece model"):
            load_tokenizer(tmp_path)
    path = tmp_path / "mgm_tokenizer.json"
    good = json.loads(path.read_text())
    for bad in ("{", "[]", json.dumps(good | {"extra": 1}), json.dumps(good | {"legacy": "no"})):
        path.write_text(bad)
        with pytest.raises(ValueError, match="mgm_tokenizer.json"):
            load_tokenizer(tmp_path)
    path.write_text(json.dumps(good | {"kind": "words"}))
    with pytest.raises(ValueError, match="'words'"):
        load_tokenizer(tmp_path)


def test_bad_arguments(llama2):
    t = llama2[FALSE]
    with pytest.raises(ValueError, match="token id 32000 at position 1"):
        t.decode([5, 32000])
    with pytest.raises(ValueError, match="-200"):
        t.decode([-200])
    with pytest.raises(ValueError, match="not valid Unicode"):
        t.encode("\ud83d")
    with pytest.raises(ValueError, match="pad_id"):
        SentencePieceTokenizer(t._model, pad_id=32000)
    with pytest.raises(ValueError, match="'<x>' has id 7"):
        SentencePieceTokenizer(t._model, special_tokens={"<x>": 7})


def test_trained_vocabulary(small, tmp_path):
    assert (small.vocab_size, small.unk_id, small.bos_id, small.eos_id) == (320, 0, 1, 2)
    assert small.pad_id == 0
    text = "What digit is on the card?\nUnseen: ÄÖ 😀 42"
    assert small.decode(small.encode(text)) == text
    assert small.unk_id not in small.encode(text)
    assert pieces(small, "42")[1] == ["", "4", "2"]  # digits are never merged

    words = ["one two three", "two three\nfour"] * 4
    first = train_tokenizer(words, tmp_path / "a" / "t.model", 285, user_defined_symbols=["<c>"])
    train_tokenizer(words, tmp_path / "b.model", 285, user_defined_symbols=["<c>"])
    assert (tmp_path / "a" / "t.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert first.encode("<c>", add_bos=False)[-1] == 3


def test_training_refuses(tmp_path):
    with pytest.raises(ValueError, match="no text given"):
        train_tokenizer(["", " \n "], tmp_path / "t.model", 300)
    with pytest.raises(ValueError, match="vocab_size=9000"):
        train_tokenizer(["a b c"], tmp_path / "t.model", 9000)
    with pytest.raises(ValueError, match="vocab_size=10"):
        train_tokenizer(["a b c"], tmp_path / "t.model", 10)
    assert not (tmp_path / "t.model").exists()


def test_the_piece_of_an_id(llama2):
    t = llama2[FALSE].replace(special_tokens={"<|im_end|>": 32002})
    ids = t.encode("Hi  é\n😀</s>▁<|im_end|>")
    found = [t.piece(i) for i in ids]
    assert found == [
        *["<s>", " Hi", " ", " é", "\n"],
        *["\\xf0", "\\x9f", "\\x98", "\\x80"],  # bytes of one character
        *["</s>", " ", "<|im_end|>"],
    ]
    for bad, message in ((32001, "stands for nothing"), (32003, "not in"), (-1, "not in")):
        with pytest.raises(ValueError, match=f"token id {bad} .*{message}"):
            t.piece(bad)
