"""Answers of a loaded model: in order, whatever way they are drawn; and files of requests."""

import json

import numpy as np
import pytest

import mgm_jax
from mgm_jax import cli
from mgm_jax.api import Request
from mgm_jax.data.images import ImageError
from mgm_jax.generate import predict
from mgm_jax.generate.answers import engine_for
from mgm_jax.generate.beams import beam_search
from mgm_jax.generate.prompts import build_prompts
from mgm_jax.generate.sampling import Sampling
from mgm_jax.text import get_template, stop_rule
from tests.conftest import WORDS
from tests.generate.conftest import picture

TEXTS = [" ".join(WORDS[i : i + 3]) for i in range(5)]
REQUESTS = [Request([("user", t)], [picture(i)] * (i % 2)) for i, t in enumerate(TEXTS)]


def test_answers_are_in_order_and_errors_in_their_places(tiny_model, tmp_path):
    texts = tiny_model.generate(REQUESTS, max_new_tokens=6, batch_size=2)
    assert len(set(texts)) >= 4
    assert tiny_model.chat(TEXTS[1], [picture(1)], max_new_tokens=6) == texts[1]
    (tmp_path / "x.png").write_bytes(b"no picture")
    bad = Request([("user", "what")], [tmp_path / "x.png"])
    mixed = [*REQUESTS[:2], bad, *REQUESTS[2:]]
    found = list(tiny_model.answers(mixed, max_new_tokens=6, batch_size=2))
    assert isinstance(found.pop(2), ImageError)
    assert [a.text for a in found] == texts
    with pytest.raises(ImageError, match="x.png"):
        tiny_model.generate([bad])
    with pytest.raises(ValueError, match="temperature is -1"):
        tiny_model.generate(REQUESTS, temperature=-1)
    with pytest.raises(TypeError, match="warmth"):
        tiny_model.generate(REQUESTS, warmth=1)


def test_the_engine_is_kept_and_grows(tiny_model):
    def engine(slots, new, cli_eos="family"):
        items = [(r, Sampling(max_new_tokens=new), 0) for r in REQUESTS]
        return engine_for(tiny_model, items, slots, cli_eos)

    first = engine(2, 5)
    assert engine(1, 6) is first
    longer = engine(1, 300)
    assert longer is not first and longer.device.count == first.device.count
    assert longer.max_length == 512 and engine(2, 5) is longer
    wider = engine(3, 5)
    assert (wider.device.count, wider.max_length) == (3, 512)
    assert engine(1, 5, "tokenizer").cli_eos == "tokenizer"
    tiny_model.engine = None


def test_drawn_answers_depend_on_seed_and_number(tiny_model):
    draw = dict(max_new_tokens=6, temperature=1.0, top_p=0.9)
    found = tiny_model.generate(REQUESTS, batch_size=2, seed=5, **draw)
    items = [(r, Sampling(seed=5, **draw), n) for n, r in enumerate(REQUESTS)]
    turned = list(tiny_model.answer_items(items[::-1], batch_size=2))[::-1]
    assert [a.text for a in turned] == found
    assert found != tiny_model.generate(REQUESTS, batch_size=2, seed=6, **draw)
    same = tiny_model.generate([REQUESTS[0]] * 5, batch_size=2, **draw)
    assert len(set(same)) > 1  # each is a draw of its own


def test_beams(tiny_model):
    """The search's own tokens, decoded; beside greedy requests they keep their places."""
    template = get_template(tiny_model.template)
    stop = tuple(stop_rule(template, tiny_model.tokenizer)[0])
    module, params = tiny_model.module, tiny_model.params
    batch = build_prompts(REQUESTS[1:2], module, tiny_model.tokenizer, template)
    expected = np.asarray(beam_search(module, params, batch, new=6, stop=stop, beams=3))[0]
    beams, greedy = Sampling(max_new_tokens=6, num_beams=3), Sampling(max_new_tokens=6)
    items = [(REQUESTS[0], greedy, 0), (REQUESTS[1], beams, 0), (REQUESTS[2], greedy, 0)]
    found = list(tiny_model.answer_items(items, batch_size=2))
    assert list(found[1].ids) == [i for i in expected if i >= 0]
    assert [found[0].text, found[2].text] == [
        tiny_model.chat(TEXTS[i], max_new_tokens=6) for i in (0, 2)
    ]


@pytest.fixture
def requests_file(tmp_path):
    picture(1).save(tmp_path / "one.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [
        {"id": "a", "text": "which digit"},
        {"id": "b", "text": "which digit", "images": ["one.png"]},
        {"messages": [{"role": "user", "content": "which <image> digit"}], "images": ["one.png"]},
        {"id": "broken", "text": "what", "images": ["bad.png"]},
        {"id": "odd", "text": "what", "colour": "red"},
        {"id": "z", "text": "the last"},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_predict_resumes_and_keeps_the_order(tiny_model, requests_file, tmp_path):
    out, sampling = tmp_path / "out.jsonl", Sampling(max_new_tokens=5, logprobs=True)

    def run(stop_after=None):
        requests, found = predict.read_requests(requests_file, None), None
        for done, total, errors in predict.predict(tiny_model, requests, out, sampling, 2):
            assert total == 6
            if done == stop_after:
                return None
            found = errors
        return found

    assert run() == 2
    whole = lines(out)
    assert [row["id"] for row in whole] == ["a", "b", 3, "broken", "odd", "z"]
    assert "bad.png" in whole[3]["error"] and "line 5: unknown key 'colour'" in whole[4]["error"]
    for row in (whole[0], whole[1], whole[2], whole[5]):
        assert len(row["ids"]) == len(row["logprobs"]) == row["tokens"] <= 5
        assert row["finish"] in ("stop", "length")
    direct = tiny_model.chat("which digit", [tmp_path / "one.png"], max_new_tokens=5)
    assert whole[1]["text"] == direct
    texts = without_logprobs(out)
    out.unlink()
    run(stop_after=2)
    with out.open("a") as file:
        file.write('{"id": 3, "te')  # a line that a kill cut off
    assert len(lines_kept(out)) == 2
    assert run() == 2 and without_logprobs(out) == texts
    picture(2).save(tmp_path / "bad.png", format="PNG")  # the error is tried again
    assert run() == 1
    again = without_logprobs(out)
    assert [row["id"] for row in again] == [row["id"] for row in whole]
    assert again[3]["text"] and again[:3] == texts[:3]
    with pytest.raises(ValueError, match="id 'a' is to another request or under other settings"):
        next(
            predict.predict(
                tiny_model, predict.read_requests(requests_file, None), out, Sampling(), 2
            )
        )
    assert without_logprobs(out) == again


def without_logprobs(file):
    """What does not depend on rounding: a prompt may be read in one piece or in two."""
    return [{k: v for k, v in row.items() if k != "logprobs"} for row in lines(file)]


def lines_kept(file):
    return file.read_text().splitlines()[:-1]


@pytest.mark.parametrize(
    "text,words",
    [
        ('{"text": "a"', "line 1: invalid JSON"),
        ("[1]", "line 1: found a list"),
        ('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}', "line 2: id is 1"),
        ('{"id": [1], "text": "a"}', "id is \\[1\\]"),
    ],
)
def test_files_that_are_no_requests(text, words, tmp_path):
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(ValueError, match=words):
        predict.read_requests(tmp_path / "in.jsonl", None)


@pytest.mark.parametrize(
    "row,words",
    [
        ({}, "expected either messages or text"),
        ({"text": "a", "messages": []}, "expected either messages or text"),
        ({"messages": "a"}, "messages is 'a', expected a list"),
        ({"messages": [{"role": "user"}]}, "expected a role and a content"),
        ({"text": 3}, "expected a role and a content"),
        ({"text": "a", "images": "x.png"}, "images is 'x.png', expected a list"),
    ],
)
def test_lines_that_are_no_request(row, words, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    (found,) = predict.read_requests(tmp_path / "in.jsonl", None).values()
    assert isinstance(found, ValueError) and words in str(found)


def test_the_command(tiny_model, requests_file, tmp_path, capsys):
    mgm_jax.save(tiny_model, tmp_path / "model")
    out = tmp_path / "out.jsonl"
    command = ["predict", str(tmp_path / "model"), "--in", str(requests_file), "--out", str(out)]
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--max-new-tokens", "5", "--batch-size", "2"])
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert "6 answers in" in printed.out and "2 of them errors" in printed.out
    assert "6 of 6" in printed.err and "s to go" in printed.err
    assert [row["id"] for row in lines(out)] == ["a", "b", 3, "broken", "odd", "z"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--top-p", "2"])
    assert "error: top_p is 2.0" in str(caught.value.code)
