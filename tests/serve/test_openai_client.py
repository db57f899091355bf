"""The unmodified `openai` client against our server."""

import asyncio
import base64
import io
import json
import socket
import time

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from mgm_jax.generate.compare import CLOSE
from mgm_jax.imagegen import NO_PROMPT, read_settings
from mgm_jax.serve.app import create_app
from mgm_jax.serve.service import Service
from tests.conftest import WORDS
from tests.serve.conftest import Scripted, photo, uri, wait_until


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def messages(*content):
    return [{"role": "user", "content": list(content)}]


def text(value):
    return {"type": "text", "text": value}


def image(seed):
    return {"type": "image_url", "image_url": {"url": uri(photo(seed)), "detail": "high"}}


def ask(client, content, **more):
    return client.chat.completions.create(
        model="mgm", messages=messages(*content), **({"max_tokens": 16} | more)
    )


def test_lists_its_model(client):
    assert [m.id for m in client.models.list()] == ["mgm"]
    assert client.models.retrieve("mgm").object == "model"
    with pytest.raises(openai.NotFoundError, match="expected 'mgm'"):
        client.models.retrieve("gpt-5")


def test_chats(client, served):
    answer = ask(client, [text("what is it")], max_tokens=12, logprobs=True)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens == len(choice.logprobs.content) <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert "".join(t.token for t in choice.logprobs.content).strip() == choice.message.content
    assert all(t.logprob <= 0 for t in choice.logprobs.content)
    plain = client.chat.completions.create(
        model="mgm", messages=[{"role": "user", "content": "what is it"}], max_completion_tokens=12
    )
    assert plain.choices[0].message.content == choice.message.content


def test_history_and_system_text_reach_the_model(client):
    def say(*turns):
        turns = [{"role": role, "content": content} for role, content in turns]
        answer = client.chat.completions.create(model="mgm", messages=turns, max_tokens=8)
        return answer.usage.prompt_tokens

    one = say(("user", "hello"))
    assert say(("user", "hello"), ("assistant", "yes"), ("user", "hello")) > one
    assert say(("system", "hi"), ("user", "hello")) != one
    assert say(("developer", "hi"), ("user", "hello")) == say(("system", "hi"), ("user", "hello"))


def test_seed_and_temperature(client):
    def draw(seed):
        return ask(client, [text("tell")], temperature=2.0, seed=seed).choices[0].message.content

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(1, 5)}) > 1
    assert draw(-1) == draw(2**32 - 1)


def test_a_stop_string_ends_the_answer(client):
    whole = ask(client, [text("what is it")]).choices[0].message.content
    stop = whole[3:5]
    answer = ask(client, [text("what is it")], stop=[stop, "never"])
    assert answer.choices[0].message.content == whole[: whole.index(stop)].strip()
    assert answer.choices[0].finish_reason == "stop"


def test_streams(client):
    content = [image(3), text("which colour")]
    whole = ask(client, content)
    chunks = list(
        ask(client, content, stream=True, stream_options={"include_usage": True}, logprobs=True)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0] for c in chunks if c.choices]
    found = "".join(p.delta.content or "" for p in pieces)
    assert found == whole.choices[0].message.content
    assert sum(bool(p.delta.content) for p in pieces) > 1
    assert [p.finish_reason for p in pieces if p.finish_reason] == [whole.choices[0].finish_reason]
    scores = [t for p in pieces if p.logprobs for t in p.logprobs.content]
    assert len(scores) == whole.usage.completion_tokens
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({c.id for c in chunks}) == 1


def test_several_pictures_keep_their_order(client, served):
    """Two pictures cost the tokens of two; swapped or in other places they are another question."""
    one = ask(client, [image(1), text("left")])
    two = ask(client, [image(1), image(2), text("left")])
    seen = two.usage.prompt_tokens - one.usage.prompt_tokens
    assert seen > served.service.engine.model.config.visual_tokens
    swapped = ask(client, [image(2), image(1), text("left")])
    assert swapped.usage.prompt_tokens == two.usage.prompt_tokens
    between = ask(client, [image(1), text("left"), image(2), text("right")])
    found = [a.choices[0].message.content for a in (one, two, swapped, between)]
    assert len(set(found)) > 2
    behind = ask(client, [text("left"), image(1)])
    assert behind.choices[0].message.content == found[0]  # as in training, in front


def test_paints(client):
    answer = client.images.generate(
        prompt="a red fox", size="96x64", n=2, extra_body={"seed": 5, "negative_prompt": "text"}
    )
    pictures = [base64.b64decode(item.b64_json) for item in answer.data]
    assert [Image.open(io.BytesIO(p)).size for p in pictures] == [(96, 64)] * 2
    settings = [read_settings(io.BytesIO(p)) for p in pictures]
    assert [s["seed"] for s in settings] == [5, 6]
    assert settings[0]["prompt"] == "a red fox" and settings[0]["negative_prompt"] == "text"
    assert pictures[0] != pictures[1]


def test_a_chat_brings_pictures(client, served, monkeypatch):
    """The answer's <h> prompt is painted and not shown; without one the client is told."""
    model = served.service.engine.model
    script = Scripted(model.tokenizer, "Sure, here. <h>a red fox in snow</h> It is cold. ")
    monkeypatch.setattr(model, "tokenizer", script)
    size = {"width": 80, "height": 48, "seed": 1}
    more = {"generate_image": True, "image_settings": size}
    settings = dict(max_tokens=13, extra_body=more)
    message = ask(client, [text("draw")], **settings).choices[0].message
    assert message.content == "Sure, here.  It"
    assert message.image_prompt == "a red fox in snow"
    (found,) = message.images
    made = Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2])))
    assert made.size == (80, 48)
    deltas = [c.choices[0].delta for c in ask(client, [text("draw")], stream=True, **settings)]
    assert "".join(d.content or "" for d in deltas) == message.content
    assert [d.images for d in deltas if hasattr(d, "images")] == [[found]]
    script._script = "I only talk"
    message = ask(client, [text("draw")], extra_body=more).choices[0].message
    assert (message.content, message.images, message.image_error) == ("I only talk", [], NO_PROMPT)


def test_64_clients_at_once(served):
    """Mixed lengths, with and without pictures: each answer is that of the same question alone."""

    def body(i):
        content = [text(" ".join(WORDS[i % 9 : i % 9 + 3 + i % 5]))]
        content = content if i % 3 == 0 else [image(i % 7), *content]
        return dict(model="mgm", messages=messages(*content), max_tokens=4 + 9 * i % 61)

    async def ask_all(count):
        gate, seconds, found = asyncio.Semaphore(count), [], {}
        options = dict(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=300)
        async with openai.AsyncOpenAI(**options) as client:

            async def one(i):
                async with gate:
                    start = time.monotonic()
                    found[i] = await client.chat.completions.create(**body(i), logprobs=True)
                    seconds.append(time.monotonic() - start)

            start = time.monotonic()
            await asyncio.gather(*map(one, range(64)))
            return found, seconds, time.monotonic() - start

    alone, _, slow = asyncio.run(ask_all(1))
    found, seconds, took = asyncio.run(ask_all(64))
    tokens = sum(a.usage.completion_tokens for a in found.values())
    p99 = np.percentile(seconds, 99)
    print(f"\n64 clients: p99 {p99:.2f} s, {tokens / took:.0f} tokens/s; one by one {slow:.1f} s")
    drawn = {i: [t.token for t in a.choices[0].logprobs.content] for i, a in found.items()}
    assert len({tuple(d) for d in drawn.values()}) >= 20
    for i, answer in alone.items():
        expected = [t.token for t in answer.choices[0].logprobs.content]
        if drawn[i] == expected:
            assert found[i].choices[0].message.content == answer.choices[0].message.content
            continue
        pairs = enumerate(zip(drawn[i], expected, strict=False))
        step = next(k for k, (one, other) in pairs if one != other)
        scores = [a.choices[0].logprobs.content[step].logprob for a in (found[i], answer)]
        assert abs(scores[0] - scores[1]) < CLOSE, (i, step, drawn[i], expected)
    assert served.serves()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_stops_its_answer(served, monkeypatch, stream):
    engine = served.service.engine
    decode, before = engine.device.decode, engine.stats.finished["cancelled"]

    def slowly(*args):
        time.sleep(0.1)
        return decode(*args)

    monkeypatch.setattr(engine.device, "decode", slowly)
    body = {"model": "mgm", "messages": messages(text("hello")), "max_tokens": 96}
    body = json.dumps(body | {"stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as client:
        client.sendall(head.encode() + body)
        wait_until(lambda: engine.stats.occupied)
    wait_until(lambda: engine.stats.finished["cancelled"] > before)
    wait_until(lambda: served.service.open_requests == 0)
    monkeypatch.undo()
    assert served.serves()


def test_not_ready_full_and_keys(served, monkeypatch):
    status, early = served.early
    assert status == 503 and early["status"] == "compiling"
    service = served.service
    monkeypatch.setattr(service, "open_requests", service.most_requests)
    full = served.ask("hello")
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert full.headers["retry-after"] == "1"
    monkeypatch.undo()
    monkeypatch.setattr(service, "ready", False)
    assert served.ask("hello").status_code == 503
    monkeypatch.undo()
    locked = Service(service.engine, api_key="secret")
    locked.ready = True

    async def get(path, **headers):
        transport = httpx.ASGITransport(create_app(locked))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get(path, headers=headers)).status_code

    assert asyncio.run(get("/v1/models")) == 401
    assert asyncio.run(get("/metrics")) == 401
    assert asyncio.run(get("/v1/models", authorization="Bearer secre")) == 401
    assert asyncio.run(get("/v1/models", authorization="Bearer secret")) == 200
    assert asyncio.run(get("/health")) == 200


def test_metrics(served):
    served.ask("hello")
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["mgm_slots"]) == 8
    assert float(values["mgm_answer_tokens_total"]) > 0
    assert float(values['mgm_finished_total{why="length"}']) > 0
    assert float(values['mgm_requests_total{route="/v1/chat/completions",status="200"}']) > 0
    assert float(values['mgm_request_seconds_count{route="/v1/chat/completions"}']) > 0
