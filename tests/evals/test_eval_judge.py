"""`evals.judge`: a judge behind a URL, and a server that fails in every way that servers do."""

import email.utils
import json
import re
import shlex
import time
from pathlib import Path

import pytest
from judge_server import completion, serving, slow

from mgm_jax import cli
from mgm_jax.evals.common import Ask
from mgm_jax.evals.judge import HttpJudge, JudgeError
from mgm_jax.evals.judge_args import DEFAULTS


def prompt_of(body):
    return body["messages"][-1]["content"]


@pytest.fixture
def judge(tmp_path):
    """(server or URL, **fields) -> a judge that does not wait long."""

    def make(server, **fields):
        fields = {"cache": tmp_path / "cache", "backoff": 0.001, "timeout": 5.0} | fields
        return HttpJudge(getattr(server, "url", server), "grader", **fields)

    return make


def asks(count, **more):
    return [Ask(f"prompt {i}", f"q{i}", **more) for i in range(count)]


def test_replies_come_in_order_and_many_at_a_time(judge):
    def reply(body, count):
        number = int(prompt_of(body).split()[1])
        return slow(0.02 if number % 3 else 0.06, f"reply {number}")

    with serving(reply) as server:
        found = judge(server, concurrency=6).many(asks(18))
        assert found == [f"reply {i}" for i in range(18)]
        assert 2 <= server.most <= 6


def test_what_is_sent(judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    with serving(lambda body, count: "fine") as server:
        one = judge(server, key_env="JUDGE_KEY", body={"max_tokens": None, "seed": 3})
        assert one("What?", system="Be fair.", temperature=0.2, max_tokens=9) == "fine"
        path, headers, body = server.seen[0]
        assert path == "/v1/chat/completions"
        assert {k.lower(): v for k, v in headers.items()}["authorization"] == "Bearer secret-key"
        messages = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "What?"}]
        assert body == {"model": "grader", "messages": messages, "temperature": 0.2, "seed": 3}
        monkeypatch.delenv("JUDGE_KEY")
        one("Other?", max_tokens=9)  # a server of one's own may want no key
        assert "authorization" not in {k.lower() for k in server.seen[1][1]}
        assert "secret-key" not in "".join(f.read_text() for f in one.cache.iterdir())


def test_replies_are_kept_and_not_asked_for_again(judge):
    with serving(lambda body, count: f"reply to {prompt_of(body)}") as server:
        first = judge(server).many(asks(5))
        assert judge(server).many([*asks(7), *asks(2)]) == [
            f"reply to prompt {i % 7}" for i in range(9)
        ]
        assert first == [f"reply to prompt {i}" for i in range(5)] and len(server.seen) == 7
        judge(server).many(asks(5, temperature=0.5))  # another request
        assert len(server.seen) == 12
        assert len(list(judge(server).cache.iterdir())) == 12  # and nothing half written


@pytest.mark.parametrize(
    "failure",
    [
        (500, "oops", {}),
        (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, {}),
        (503, "", {"retry-after": "0"}),
        (200, "<html>a proxy</html>", {"raw": "1"}),
        (200, {"choices": []}, {}),
        (200, completion(None), {}),
    ],
    ids=["500", "429", "503", "no JSON", "no choice", "empty"],
)
def test_what_passes_is_tried_again(judge, failure):
    with serving(lambda body, count: failure if count < 2 else "fine") as server:
        assert judge(server).many(asks(3)) == ["fine"] * 3
        assert len(server.seen) == 9


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_kept_to(judge, date):
    def wait():
        return email.utils.formatdate(time.time() + 2, usegmt=True) if date else "0.4"

    def reply(body, count):
        return "fine" if count else (429, {"error": {"message": "x"}}, {"retry-after": wait()})

    with serving(reply) as server:
        started = time.monotonic()
        assert judge(server)("What?") == "fine"
        assert time.monotonic() - started > 0.39  # a date has whole seconds
    with serving(lambda *_: (429, "later", {"retry-after": "9999"})) as server:
        with pytest.raises(JudgeError, match="asks to come back in 9999 s"):
            judge(server)("What?")
        assert len(server.seen) == 1


def test_failures_name_their_questions_and_lose_nothing(judge):
    """Of nine questions six are judged; a rerun asks for the other three alone."""

    def reply(body, count):
        number = int(prompt_of(body).split()[1])
        if broken and number == 2:
            return slow(2.5, "too late")
        if broken and number == 4:
            return 200, completion(None, message={"refusal": "I cannot do that."}), {}
        if broken and number == 7:
            return "No idea, sorry."
        return f"{number}"

    broken = True
    with serving(reply) as server:
        one = judge(server, timeout=1.0, attempts=2)
        with pytest.raises(JudgeError) as caught:
            one.many(asks(9, readable=str.isdigit))
        message = str(caught.value)
        assert "no judgement of 3 of 9 questions: " in message and str(one.cache) in message
        assert "question 'q2': timed out; 2 attempts" in message
        assert "question 'q4': the judge refuses: 'I cannot do that.'" in message
        assert "question 'q7': the reply cannot be read: 'No idea, sorry.'" in message
        kept = judge(server, timeout=1.0, attempts=1, keep_unread=True)
        assert kept.many([Ask("prompt 7", "q7", readable=str.isdigit)]) == ["No idea, sorry."]
        broken = False
        before = len(server.seen)
        assert one.many(asks(9, readable=str.isdigit)) == [str(i) for i in range(9)]
        asked = sorted(prompt_of(b) for _, _, b in server.seen[before:])
        assert asked == ["prompt 2", "prompt 4", "prompt 7"]


@pytest.mark.parametrize("status, code", [(401, "invalid_api_key"), (429, "insufficient_quota")])
def test_a_judge_that_answers_nobody_is_left_alone(judge, monkeypatch, status, code):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    error = {"error": {"message": "Not with sk-verysecret", "code": code}}
    with serving(lambda *_: (status, error, {})) as server:
        with pytest.raises(JudgeError) as caught:
            judge(server, concurrency=2).many(asks(40))
        assert f"question 'q0': status {status}: Not with ***" in str(caught.value)
        assert "were not asked any more" in str(caught.value)
        assert "verysecret" not in str(caught.value) and len(server.seen) < 10


def test_a_judge_that_fails_all_the_time_is_left_alone(judge):
    with serving(lambda *_: (400, {"error": {"message": "no max_tokens here"}}, {})) as server:
        with pytest.raises(
            JudgeError, match="status 400: no max_tokens here; .*not asked any more"
        ):
            judge(server, concurrency=2).many(asks(40))
        assert len(server.seen) < 20
    with pytest.raises(JudgeError, match="question 'q0': no connection: .*; 2 attempts"):
        judge(server.url, attempts=2).many(asks(1))  # it is gone


def test_a_prompt_that_is_too_long_may_be_cut(judge):
    def reply(body, count):
        if len(prompt_of(body)) > 80:
            return 400, {"error": {"message": "long", "code": "context_length_exceeded"}}, {}
        return prompt_of(body)

    with serving(reply) as server:
        text = "".join(chr(ord("a") + i % 26) for i in range(100))
        assert judge(server).many([Ask(text, cut=True)])[0] == text[-73:]
        with pytest.raises(JudgeError, match="status 400: long"):
            judge(server).many([Ask(text + "!")])


def test_the_cost_is_told_before_and_bounded(judge, capsys):
    prices = {"price_in": 2.0, "price_out": 10.0}
    with serving(lambda *_: "fine") as server:
        many = [Ask("x" * 3500, i, max_tokens=100) for i in range(10)]
        distinct = [a._replace(prompt=a.prompt + str(a.id)) for a in many]
        with pytest.raises(JudgeError, match=r"about \$0.03 at most: above the budget of \$0.01"):
            judge(server, budget=0.01, **prices).many(distinct)
        assert not server.seen
        judge(server, budget=0.04, **prices).many(distinct)
        said = capsys.readouterr().err
        assert "10 to ask, 0 answered before; about 10,003 tokens of prompts, at most 1,000" in said
        assert (
            "about $0.03 at most" in said and "judge: 100 tokens of prompts, 20 of replies" in said
        )
        judge(server, budget=0.0, **prices).many(distinct)  # costs nothing any more
        assert "0 to ask, 10 answered before" in capsys.readouterr().err


def test_settings_that_make_no_sense(judge, tmp_path):
    for fields, message in (
        ({"concurrency": 0}, "concurrency is 0, expected more than 0"),
        ({"budget": 1.0}, "a budget needs the prices"),
    ):
        with pytest.raises(ValueError, match=message):
            judge("http://localhost/v1", **fields)
    with pytest.raises(ValueError, match="url is 'localhost', expected http"):
        judge("localhost")
    with serving(lambda *_: "fine") as server:
        one = judge(server)
        one("What?")
        (file,) = one.cache.iterdir()
        file.write_text("{}")
        with pytest.raises(JudgeError, match=f"{file}: found no text 'reply'"):
            one("What?")


# --- eval score ---


def mmvet_judge(body, count):
    said = dict(line.split(": ", 1) for line in prompt_of(body).split("\n") if ": " in line)
    return "1.0" if said["Reference"] == said["Answer"] else "0.0"


def llava_judge(body, count):
    return "8 8\nFine." if "[Assistant 2]\ngood" in prompt_of(body) else "8 4\nPoor."


JUDGES = {"mmvet": mmvet_judge, "llavabench": llava_judge, "mathvista": lambda *_: "[1, 2]"}


@pytest.mark.parametrize("name", JUDGES)
def test_eval_score_asks_a_judge_by_url(name, make_case, capsys):
    case, _, file = make_case(name)
    command = ["eval", "score", name, "--predictions", str(file), "--annotations"]
    command += [str(case.annotations), "--judge-model", "m"]
    with serving(JUDGES[name]) as server:
        for _ in range(2):
            cli.main([*command, "--judge-url", server.url])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["judge"] == f"m at {server.url}"
        assert len(server.seen) == (8 if name == "mathvista" else 20)
        assert file.with_suffix(".judge").is_dir()
    if name != "mathvista":
        assert found["summary"] == pytest.approx(case.summary)
    else:
        assert found["found_by"] == {"rule": 12, "judge": 8, "fallback": 0}


def test_the_page(make_case, tmp_path, monkeypatch, capsys):
    """The command of docs/judges.md, its options, and its numbers."""
    page = (Path(__file__).parents[2] / "docs" / "judges.md").read_text()
    command = shlex.split(re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1])[1:]
    make_case("mmvet")
    monkeypatch.chdir(tmp_path)
    with serving(mmvet_judge) as server:
        cli.main([server.url if part.startswith("http") else part for part in command])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["total"] == 65.0
    assert (tmp_path / "mmvet.judge").is_dir()
    flags = {f"--judge-{name.replace('_', '-')}" for name in DEFAULTS}
    assert set(re.findall(r"`(--judge-[\w-]+)", page)) == flags - {"--judge-backoff"}
    for name in ("concurrency", "attempts", "timeout"):
        assert f"({DEFAULTS[name]:g})" in page


def test_options_of_eval_score(make_case, monkeypatch):
    case, _, file = make_case("mmvet")
    given = ["--predictions", str(file), "--annotations", str(case.annotations)]

    def message(*more, name="mmvet"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["eval", "score", name, *given, *more])
        return str(caught.value.code)

    url = ("--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m")
    assert message("--judge-model", "m") == "error: --judge-model is given, but not --judge-url"
    assert message(*url[:2]) == "error: --judge-url is given, but not --judge-model"
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert "NO_SUCH_KEY: this variable is not set" in message(
        *url, "--judge-key-env", "NO_SUCH_KEY"
    )
    assert "--judge-body: found [], expected a JSON object" in message(*url, "--judge-body", "[]")
    assert "--judge-body: not JSON" in message(*url, "--judge-body", "{")
    assert "--submission asks no judge" in message(*url, "--submission", "x.json")
    assert "textvqa is scored by rules and asks no judge" in message(*url, name="textvqa")
