"""The engine against answers one by one: order, neighbours and what is kept change nothing."""

import asyncio
import json
import random
import re
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from mgm_jax.api import Request
from mgm_jax.generate.batches import greedy
from mgm_jax.generate.compare import explain_difference, unexplained
from mgm_jax.generate.engine import Engine
from mgm_jax.generate.prompts import build_prompts
from mgm_jax.generate.sampling import Sampling
from mgm_jax.generate.tickets import Full
from mgm_jax.text import get_template, stop_rule
from tests.conftest import WORDS
from tests.generate.conftest import picture

PROGRAMS = r"jit\((look|embed|read|read_on|begin|decode|copy_out|copy_in)\)"  # of `slots`
NEW = 10
LENGTHS = dict(max_length=128, prefill_buckets=(48,), prefill_batch=2, decode_steps=4)


def question(i):
    """Texts of different lengths; two of three with a picture, some pictures asked about often."""
    text = " ".join(WORDS[i % 9 : i % 9 + 3 + i % 4])
    images = [picture(i // 6)] if i % 3 else []
    return Request([("user", text)], images)


QUESTIONS = [question(i) for i in range(28)]
GREEDY = [Sampling(max_new_tokens=NEW + i % 5) for i in range(len(QUESTIONS))]


def ask(engine, requests, samplings, order=None):
    """The answers, in the order of the requests."""
    order = list(range(len(requests))) if order is None else order
    found = engine.answers((requests[i], samplings[i], i) for i in order)
    return dict(zip(order, found, strict=True))


@pytest.fixture(scope="module")
def alone(tiny_model):
    """Each question by itself, nothing kept."""
    with Engine(tiny_model, slots=4, prefix_bytes=0, picture_bytes=0, **LENGTHS) as engine:
        found = {}
        for i, (request, sampling) in enumerate(zip(QUESTIONS, GREEDY, strict=True)):
            (found[i],) = engine.answers([(request, sampling, i)])
        assert engine.stats.reused_tokens == 0
        return found


@pytest.fixture(scope="module")
def engine(tiny_model):
    with Engine(tiny_model, slots=4, **LENGTHS) as engine:
        yield engine


def assert_same(alone, found):
    pairs = [(alone[i].ids, found[i].ids, alone[i].margins) for i in sorted(alone)]
    differences, wrong = unexplained(pairs)
    assert not wrong, wrong
    assert len(differences) < 3, differences


def test_batched_answers_equal_one_by_one(engine, alone):
    """28 questions with and without pictures, at once and shuffled; 20 distinct answers or more."""
    assert len({a.ids for a in alone.values()}) >= 20
    assert {a.finish for a in alone.values()} <= {"stop", "length"}
    assert_same(alone, ask(engine, QUESTIONS, GREEDY))
    assert engine.stats.reused_tokens > 0
    order = random.Random(0).sample(range(len(QUESTIONS)), len(QUESTIONS))
    assert_same(alone, ask(engine, QUESTIONS, GREEDY, order))
    for i, answer in alone.items():
        assert len(answer.margins) == len(answer.ids) <= GREEDY[i].max_new_tokens
        assert answer.logprobs is None


def test_answers_equal_those_of_a_batch_without_slots(tiny_model, alone):
    """`batches.greedy` shares no loop with the engine."""
    template = get_template(tiny_model.template)
    batch = build_prompts(QUESTIONS, tiny_model.module, tiny_model.tokenizer, template)
    stop = tuple(stop_rule(template, tiny_model.tokenizer)[0])
    found = np.asarray(greedy(tiny_model.module, tiny_model.params, batch, new=NEW, stop=stop))
    pairs = [
        (a.ids[:NEW], [int(t) for t in found[i] if t >= 0], a.margins) for i, a in alone.items()
    ]
    assert not unexplained(pairs)[1]


def test_answers_on_a_mesh(run_command, alone):
    """4 slots over data, 2 key heads over tensor: 2 and 1 a device; the same answers."""
    command = [sys.executable, "-m", "tests.generate.engine_on_mesh"]
    done = run_command(command, devices=4, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    pairs = [(alone[i].ids, ids, alone[i].margins) for i, ids in enumerate(found["ids"])]
    assert len(pairs) == 8 and not unexplained(pairs)[1]
    assert found["reused"] > 0 and found["shard"] == [2, 1, LENGTHS["max_length"], 8]


def test_beginnings_with_pictures_are_read_once(tiny_model, alone, engine):
    """Towers see each picture once, and its tokens are prefilled once; answers are the same."""
    ask(engine, QUESTIONS, GREEDY)
    pictures = {i // 6 for i in range(len(QUESTIONS)) if i % 3}
    assert len(engine.device.pictures) == len(engine.device.prefixes) == len(pictures)
    again = ask(engine, QUESTIONS, GREEDY)
    with_pictures = [i for i in again if QUESTIONS[i].images]
    assert all(again[i].reused_tokens > tiny_model.config.visual_tokens for i in with_pictures)
    assert_same(alone, again)


def test_what_is_kept_is_bounded(tiny_model, alone):
    with Engine(tiny_model, slots=4, prefix_bytes=20_000, picture_bytes=3000, **LENGTHS) as engine:
        assert_same(alone, ask(engine, QUESTIONS, GREEDY))
        for kept, limit in ((engine.device.prefixes, 20_000), (engine.device.pictures, 3000)):
            assert 0 < len(kept) and kept.bytes <= limit


def test_draws_depend_on_seed_and_number_alone(engine, tiny_model):
    hot = [Sampling(max_new_tokens=NEW, temperature=1.5, top_k=40, seed=3)] * len(QUESTIONS)
    mixed = [s if i % 2 else h for i, (s, h) in enumerate(zip(GREEDY, hot, strict=True))]
    found = ask(engine, QUESTIONS, hot)
    order = list(reversed(range(len(QUESTIONS))))
    other = ask(engine, QUESTIONS, mixed, order)
    assert all(found[i].ids == other[i].ids for i in found if not i % 2)
    reseeded = [Sampling(max_new_tokens=NEW, temperature=1.5, top_k=40, seed=4)] * 4
    assert any(found[i].ids != a.ids for i, a in ask(engine, QUESTIONS[:4], reseeded).items())


def test_threads_that_come_and_go(tiny_model, alone):
    """Twelve clients in threads, random pauses, some cancel: every other answer is its own."""
    with Engine(tiny_model, slots=4, **LENGTHS).start() as engine:
        found, rng = {}, random.Random(1)
        pauses = [rng.random() * 0.05 for _ in QUESTIONS]

        def client(start):
            for i in range(start, len(QUESTIONS), 12):
                threading.Event().wait(pauses[i])
                ticket = engine.submit(QUESTIONS[i], GREEDY[i])
                if i % 7 == 3:
                    ticket.cancel()
                found[i] = ticket.result(timeout=300)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(12)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(found) == len(QUESTIONS)
        whole = {i: a for i, a in found.items() if a.finish != "cancelled"}
        assert len(whole) >= 24
        assert_same({i: alone[i] for i in whole}, whole)
        for i in set(found) - set(whole):
            assert alone[i].ids[: len(found[i].ids)] == found[i].ids
        snapshot = engine.stats.snapshot()
        assert snapshot["occupied"] == snapshot["waiting"] == 0
        assert sum(snapshot["finished"].values()) == len(QUESTIONS)


def test_pieces_make_up_the_answer(tiny_model, alone):
    """By callback, iterator and asyncio; ids, texts and log-probabilities together are whole."""
    sampling = Sampling(max_new_tokens=NEW, logprobs=True)
    with Engine(tiny_model, slots=4, **LENGTHS).start() as engine:
        called = []
        ticket = engine.submit(QUESTIONS[0], sampling, on_token=called.append)
        streamed = list(ticket.stream())

        async def listen():
            return [piece async for piece in engine.submit(QUESTIONS[0], sampling).astream()]

        answer = ticket.result()
        for pieces in (called, streamed, asyncio.run(listen())):
            assert len(pieces) > 1
            assert "".join(p.text for p in pieces) == answer.text
            assert sum((p.ids for p in pieces), ()) == answer.ids == alone[0].ids
            assert sum((p.logprobs for p in pieces), ()) == answer.logprobs
        assert len(answer.logprobs) == len(answer.ids) and max(answer.logprobs) < 0


def test_stop_strings_end_an_answer_and_stay_out(engine, alone, tiny_model):
    """A string from the middle of an answer: the text ends before it, no piece has any of it."""
    i = max(alone, key=lambda i: len(alone[i].text))
    text = alone[i].text
    stop = text[len(text) // 2 :][:3]
    pieces = []
    sampling = Sampling(max_new_tokens=NEW + 4, stop=(stop, "never said"))
    ticket = engine.submit(QUESTIONS[i], sampling, on_token=pieces.append)
    while not ticket.done():
        engine.step()
    answer = ticket.result()
    assert answer.finish == "stop"
    assert answer.text == text[: text.index(stop)].strip() == "".join(p.text for p in pieces)
    assert len(answer.ids) < len(alone[i].ids) and len(answer.margins) == len(answer.ids)
    assert alone[i].ids[: len(answer.ids)] == answer.ids


def test_stop_ids_of_the_template(tiny_model, alone):
    """The id that an answer has as its fourth, made the end-of-sequence id, ends it there."""
    i = next(i for i, a in alone.items() if a.ids[3] not in a.ids[:3])
    tokenizer = tiny_model.tokenizer.replace(eos_id=alone[i].ids[3])
    changed = type(tiny_model)(tiny_model.module, tiny_model.params, tokenizer, "v1", {})
    with Engine(changed, slots=4, **LENGTHS) as engine:
        (answer,) = engine.answers([(QUESTIONS[i], GREEDY[i], 0)])
    assert answer.ids == alone[i].ids[:4] and answer.finish == "stop"


def test_a_bad_request_ends_alone(engine, alone, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def raising(piece):
        raise KeyError("the caller's own")

    bad = [
        Request([("user", "what")], [tmp_path / "broken.png"]),
        Request([("user", "what")], [tmp_path / "missing.png"]),
        Request([("user", "<image> what")], [picture(0), picture(1)]),
        Request([("user", "one two three " * 60)]),
        Request([("assistant", "what")]),
    ]
    tickets = [engine.submit(r, GREEDY[0]) for r in bad]
    tickets.append(engine.submit(QUESTIONS[1], GREEDY[1], on_token=raising))
    good = [engine.submit(QUESTIONS[i], GREEDY[i]) for i in range(6)]
    while engine.step():
        pass
    assert_same({i: alone[i] for i in range(6)}, {i: t.result() for i, t in enumerate(good)})
    expected = (
        "broken.png",
        "missing.png",
        "1 <image>",
        "more than the 128 of the engine",
        "alternate",
    )
    for ticket, words in zip(tickets, expected, strict=False):
        with pytest.raises((ValueError, OSError), match=words):
            ticket.result()
    with pytest.raises(KeyError, match="the caller's own"):
        tickets[-1].result()


def test_a_failed_round_ends_its_requests_and_not_the_engine(
    tiny_model, alone, monkeypatch, caplog
):
    with Engine(tiny_model, slots=4, **LENGTHS).start() as engine:
        decode = engine.device.decode

        def fail(alive, eager):
            monkeypatch.setattr(engine.device, "decode", decode)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine.device, "decode", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.submit(QUESTIONS[0], GREEDY[0]).result(timeout=300)
        assert engine.submit(QUESTIONS[0], GREEDY[0]).result(timeout=300).ids == alone[0].ids
        assert "a round of the engine failed" in caplog.text


def test_the_cache_ends_an_answer_that_fills_it(engine, tiny_model):
    """A prompt of 120 of 128 tokens has room for 9: the last one is not written."""
    text = ""
    while len(tiny_model.encode(Request([("user", text + " a")]))) <= 120:
        text += " a"
    (answer,) = engine.answers([(Request([("user", text)]), Sampling(max_new_tokens=50), 0)])
    assert answer.prompt_tokens == 120
    assert answer.finish == "length" and len(answer.ids) == 9


def test_a_full_queue_and_a_closed_engine(tiny_model):
    engine = Engine(tiny_model, slots=4, queue=2, **LENGTHS)
    tickets = [engine.submit(QUESTIONS[0], GREEDY[0]) for _ in range(2)]
    with pytest.raises(Full, match="2 requests wait already"):
        engine.submit(QUESTIONS[0], GREEDY[0])
    engine.close()
    assert [t.result().finish for t in tickets] == ["cancelled"] * 2
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(QUESTIONS[0])


def test_sizes_and_settings_that_do_not_fit(engine, tiny_model):
    for name in ("slots", "max_length", "prefill_batch", "decode_steps", "queue"):
        with pytest.raises(ValueError, match=f"{name} is 0, expected 1 or more"):
            Engine(tiny_model, **(LENGTHS | {name: 0}))
    with pytest.raises(ValueError, match="num_beams is 3, expected 1"):
        engine.submit(QUESTIONS[0], Sampling(num_beams=3))


def test_warm_up_compiles_all_that_requests_need(tiny_model, alone, caplog):
    seen = []
    sizes = dict(slots=2, max_length=96, prefill_buckets=(), prefill_batch=1)
    with Engine(tiny_model, **sizes) as engine:
        engine.warm_up(lambda name, done, of: seen.append((name, done, of, engine.stats.ready)))
        assert seen[0][0] == "decode" and seen[-1][0] == "ready"
        assert [s[1] for s in seen] == list(range(len(seen)))
        assert not seen[0][3] and seen[-1][3] and engine.stats.snapshot()["ready"]
        with jax.log_compiles():
            assert_same(alone, ask(engine, QUESTIONS, GREEDY))
        compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
        assert not [line for line in compiled if re.search(PROGRAMS, line)], compiled


def test_where_answers_part():
    margins = np.array([1.0, 0.5, 1e-5])
    assert explain_difference([1, 2, 3], [1, 2, 3], margins) is None
    close = explain_difference([1, 2, 3], [1, 2, 4], margins)
    assert close.step == 2 and close.ids == (3, 4) and close.explained
    assert not explain_difference([1, 2, 3], [1, 9, 3], margins).explained
    shorter = explain_difference([1, 2], [1, 2, 3], margins[:2])
    assert shorter.ids == (None, 3) and not shorter.explained
    differences, wrong = unexplained([([1], [2], [0.1]), ([1], [2], [1e-6])])
    assert [d.request for d in differences] == [0, 1] and [d.request for d in wrong] == [0]
