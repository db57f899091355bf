"""The chat over a model that answers from a script: what is sent, kept, painted, saved, printed."""

import json

import pytest
from PIL import Image

from mgm_jax.generate import terminal
from mgm_jax.generate.chat import Chat, number_pictures, place_pictures
from mgm_jax.generate.commands import COMMANDS, SETTINGS, Session
from mgm_jax.generate.pictures import load_pictures
from mgm_jax.generate.sampling import Sampling
from mgm_jax.imagegen import Painter, make_backend, read_settings
from mgm_jax.text import Turn


class Script:
    """A stream of given answers; an exception among its pieces is raised."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    def __call__(self, request, sampling):
        self.seen.append((request, sampling))
        request.turns()  # placeholders and pictures have to match
        for piece in self.answers.pop(0) if self.answers else ["yes"]:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def sent(self, n=-1):
        return [text for _, text in self.seen[n][0].messages]


class Letters:
    def encode(self, text, add_bos=None):
        return list(text)


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("a.png", "b 1.png", "b 2.png")):
        Image.new("RGB", (4 + n, 4), "red").save(name)
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    painter = Painter(make_backend("placeholder"), tmp_path / "made")
    return Session(Chat(Script()), painter, Letters(), about={"model": "m", "template": "v1"})


def run(session, *lines):
    """Types lines into the chat; what it prints."""
    return "".join(piece for line in lines for piece in session.respond(line))


# --- the conversation ---


def test_history_is_sent(session):
    session.chat.stream = script = Script(["Hel", "lo"], [" again "], ["third"])
    assert run(session, "one") == "Hello"
    run(session, "two", "/clear", "three")
    assert script.sent(1) == ["one", "Hello", "two"] and script.sent(2) == ["three"]
    assert session.chat.turns == [("user", "three"), ("assistant", "third")]


def test_pictures_join_in_the_middle_and_are_numbered(session):
    run(session, "/image a.png", "what?", "/image 'b*.png'", "and these?", "so?")
    sent = session.chat.stream.sent
    assert sent(0) == ["<image>\nwhat?"]
    assert sent(1)[0] == "Image 1:<image>\nwhat?"
    assert sent(1)[2] == "Image 2:<image>\nImage 3:<image>\nand these?"
    assert sent(2)[-1] == "so?"
    assert [p.size[0] for p in session.chat.stream.seen[2][0].images] == [4, 5, 6]
    assert "picture 3: b 2.png, 6 x 4" in run(session, "/image")


def test_placeholders_of_the_users_own(session):
    assert place_pictures("<image> or <image>?", 2) == "<image> or <image>?"
    with pytest.raises(ValueError, match="found 1 <image> in the question, but 0 new picture"):
        run(session, "what is <image>?")
    assert number_pictures([Turn("user", "one <image>")])[0].text == "one <image>"
    # an answer with the word in it is no placeholder later
    session.chat.stream = Script(["an <image>"])
    run(session, "one", "two")
    assert session.chat.stream.sent(1) == ["one", "an", "two"]


def test_what_stops_an_answer_and_what_fails(session):
    """A stopped answer is kept up to there; an error leaves the history and the pictures."""
    session.chat.stream = Script(["par", "tial", KeyboardInterrupt()], ["x", OSError("gone")], [])
    with pytest.raises(KeyboardInterrupt):
        run(session, "one")
    kept = [("user", "one"), ("assistant", "partial")]
    assert session.chat.turns == kept
    run(session, "/image a.png")
    with pytest.raises(OSError, match="gone"):
        run(session, "two")
    run(session, "three")  # no text at all
    assert session.chat.turns == kept and len(session.chat.pending) == 1
    answer = session.chat.ask("four")
    next(answer)
    answer.close()
    assert session.chat.turns[-1] == ("assistant", "yes") and not session.chat.pending


def test_the_system_text(session):
    run(session, "/system Be brief.", "one")
    assert session.chat.stream.seen[0][0].messages[0] == ("system", "Be brief.")
    run(session, "/clear", "/system", "two")
    assert session.chat.stream.sent(1) == ["two"]


def test_bad_pictures(session):
    for line, why in (
        ("/image damaged.png", "damaged.png: empty, damaged header"),
        ("/image none.png", "none.png: the file is missing"),
        ("/image *.jpg", r"\*.jpg: no file matches"),
        ("/image 'a.png", "No closing quotation"),
        ("/image a.png damaged.png", "damaged.png"),
        ("/image http://127.0.0.1/a.png", "URLs are off; start the chat with --allow-urls"),
    ):
        with pytest.raises((ValueError, OSError), match=why):
            run(session, line)
    assert not session.chat.pending
    with pytest.raises(OSError, match="no public address"):
        load_pictures(["http://127.0.0.1/a.png"], allow_urls=True)


def test_pictures_from_urls(monkeypatch, tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    data = {"https://x.test/a": (tmp_path / "a.png").read_bytes(), "https://x.test/b": b"<html>"}
    monkeypatch.setattr("mgm_jax.generate.pictures.fetch", data.__getitem__)
    (shown,) = load_pictures(["https://x.test/a"], allow_urls=True)
    assert shown.name == "https://x.test/a" and shown.picture.size == (3, 2)
    with pytest.raises(ValueError, match="https://x.test/b: empty, damaged"):
        load_pictures(["https://x.test/b"], allow_urls=True)


# --- settings and commands ---


def test_settings(session):
    assert run(session, "/temperature 0.5") == "temperature: 0.5"
    assert run(session, "/seed 7", "/width") == "seed: 7width: default of the back end"
    run(session, "/top_p 0.9", "/height 64", "/negative_prompt blurry cats", "question")
    assert session.chat.stream.seen[0][1] == Sampling(temperature=0.5, top_p=0.9, seed=7)
    painting = session.painter.settings
    assert (painting.seed, painting.height) == (7, 64)
    assert painting.negative_prompt == "blurry cats"
    run(session, "/seed default")
    assert session.chat.sampling.seed == 0 and session.painter.settings.seed is None
    assert all(f"{name}: " in run(session, "/settings") for name in SETTINGS)


@pytest.mark.parametrize(
    "line,why",
    [
        ("/dance", "unknown command /dance; /help lists the commands"),
        ("/seed x", "/seed: found 'x', expected a value .int."),
        ("/seed -1", "seed is -1, expected"),
        ("/temperature -1", "temperature is -1.0"),
        ("/steps 0", "steps is 0"),
        ("/loop -1", "/loop: found '-1', expected a number, 0 or more"),
        ("/ocr maybe", "/ocr: found 'maybe', expected on, off or nothing"),
        ("/gen", "there is no prompt and no answer yet"),
    ],
)
def test_bad_commands(session, line, why):
    before = session.chat.sampling, session.painter.settings
    with pytest.raises(ValueError, match=why):
        run(session, line)
    assert (session.chat.sampling, session.painter.settings) == before


def test_help_and_quit(session):
    text = run(session, "/help", "")
    assert all(name in text for name in [*COMMANDS, *(f"/{name}" for name in SETTINGS)])
    assert session.open
    run(session, "/quit")
    assert not session.open


def test_save(session, tmp_path):
    session.chat.stream = Script(["Rot, 红"])
    out = run(session, "/image a.png", "what?", "/gen a cat", "/save sub/talk", "/save")
    assert "saved sub/talk.json and sub/talk.txt" in out
    record = json.loads((tmp_path / "sub/talk.json").read_text())
    assert record["model"] == "m" and record["images"] == ["a.png"] and record["system"] is None
    assert record["turns"][1] == {"role": "assistant", "text": "Rot, 红"}
    assert record["painted"][0]["prompt"] == "a cat" and record["sampling"]["seed"] == 0
    assert (tmp_path / "sub/talk.txt").read_text("utf-8") == (
        "user: <image>\nwhat?\n\nassistant: Rot, 红\n"
    )
    with pytest.raises(FileExistsError, match="sub/talk.json is there already"):
        run(session, "/save sub/talk")
    assert len(list(tmp_path.glob("chat-*.json"))) == 1


# --- OCR ---


@pytest.fixture
def reads(monkeypatch):
    """Pictures that are n pixels wide have the text "n" in them; the widths that were read."""
    widths = []

    def read_text(picture):
        widths.append(picture.width)
        return [str(picture.width)] if picture.width > 4 else []

    monkeypatch.setattr("mgm_jax.ocr.read_text", read_text)
    return widths


def test_ocr_hints(session, reads):
    """Each picture's text goes along once, with the first question that can have it."""
    run(session, "/image 'b 1.png'", "off")
    out = run(session, "/ocr on", "one", "two", "/image 'b 2.png' a.png", "three")
    sent = session.chat.stream.sent
    assert sent(0) == ["<image>\noff"]
    assert sent(1)[-1] == "one\nReference OCR Token: 5\n" and sent(2)[-1] == "two"
    assert sent(3)[-1].endswith("three\nReference OCR Token: 6\n")
    assert "(OCR: 5)" in out and "(OCR: 6)" in out and reads == [5, 6, 4]
    assert "b 2.png: 6\na.png: no text\nOCR hints: on" in run(session, "/ocr")


def test_a_stopped_answer_has_had_its_hint(session, reads):
    """Not so one that failed."""
    session.ocr = True
    session.chat.stream = Script([OSError("gone")], ["par", KeyboardInterrupt()], ["yes"])
    run(session, "/image 'b 1.png'")
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error):
            run(session, "one")
        assert session.chat.stream.sent()[-1].endswith("one\nReference OCR Token: 5\n")
    run(session, "two")
    assert session.chat.stream.sent()[-1] == "two"


def test_ocr_hints_as_in_the_original(session, reads):
    session.ocr = session.ocr_every_turn = True
    run(session, "/image 'b 1.png'", "one", "/gen on", "two")
    assert session.chat.stream.sent()[-1] == "two\nReference OCR Token: 5\n <GEN>"
    assert reads == [5]


def test_ocr_is_capped_and_says_so(session, reads, monkeypatch):
    monkeypatch.setattr("mgm_jax.ocr.read_text", lambda picture: ["word"] * 100)
    session.ocr, session.ocr_tokens = True, 60
    out = run(session, "/image a.png", "one")
    assert "more left out)" in out
    assert len(session.chat.stream.sent()[0]) <= len("<image>\none") + 60


def test_placeholders_that_ocr_reads(session, monkeypatch):
    monkeypatch.setattr("mgm_jax.ocr.read_text", lambda picture: ["<image>"])
    session.ocr = True
    run(session, "/image a.png", "one")
    assert session.chat.stream.sent()[0].count("<image>") == 1


# --- pictures ---


def test_a_picture_with_an_answer(session, tmp_path):
    session.chat.stream = Script(["Sure. <h>a r", "ed cat</h>"])
    out = run(session, "/gen on", "/seed 3", "/width 32", "/height 32", "a cat, please")
    assert session.chat.stream.sent() == ["a cat, please <GEN>"]
    (path,) = (tmp_path / "made").glob("*.png")
    assert "Sure. \nprompt: a red cat\n" in out and "<h>" not in out
    assert f"picture: {path}" in out and "seed 3" in out and "width 32" in out
    assert read_settings(path)["prompt"] == "a red cat"
    assert session.chat.turns[-1].text == "Sure. <h>a red cat</h>"  # as the model wrote it
    run(session, "/gen", "/gen a blue cat", "/gen")
    prompts = [read_settings(p)["prompt"] for p in (tmp_path / "made").glob("*.png")]
    assert sorted(prompts) == ["a blue cat", "a blue cat", "a red cat", "a red cat"]


def test_an_answer_without_a_prompt(session, tmp_path):
    session.chat.stream = Script(["A red cat."], ["A dog."])
    out = run(session, "/gen on", "draw")
    assert "the model wrote no prompt" in out and "/gen paints its reply" in out
    assert not (tmp_path / "made").exists()
    assert "prompt: A red cat." in run(session, "/gen")
    assert "prompt: A dog." in run(session, "draw", "/gen")


def test_the_loop_in_the_chat(session, tmp_path):
    session.chat.stream = Script(["<h>cat</h>"], ["Too small. <h>big cat</h>"], ["Fine."])
    out = run(session, "/gen on", "/loop 3", "draw")
    assert "round 1: Too small." in out and "prompt: big cat" in out and "round 2: Fine." in out
    assert "the model wrote no prompt" in out and ".loop.json" in out
    looked = session.chat.stream.seen[1][0]
    assert len(looked.images) == 1 and looked.messages[0][1].startswith("<image>\n")
    assert len(session.chat.turns) == 2  # looks are no part of the conversation


# --- the terminal ---


def typed(*lines):
    """A `read` that gives lines; an exception among them is raised; then the end of input."""
    left = iter(lines)

    def read():
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    return read


def test_no_error_ends_the_chat(session, capsys):
    session.chat.stream = Script(["\n so", KeyboardInterrupt()], [RuntimeError()], ["end\x1b[2J"])
    lines = ["one", "/dance", "two", KeyboardInterrupt(), "/image none.png", "three"]
    terminal.loop(session, typed(*lines), interactive=True)
    out = capsys.readouterr().out
    for text in ("so\n(stopped)", "error: unknown command", "error: RuntimeError", "leaves"):
        assert text in out
    assert "error: picture none.png: the file is missing" in out and out.endswith("end[2J\n\n")
    assert [t.text for t in session.chat.turns] == ["one", "so", "three", "end\x1b[2J"]


def test_ctrl_c_without_a_terminal_ends_the_chat(session, capsys):
    terminal.loop(session, typed(KeyboardInterrupt(), "one"), interactive=False)
    assert not session.chat.turns


def test_what_is_printed(capsys):
    terminal.show(piece for piece in ["", "\n ", " a", "b\n", "c\t\x07d", "é\x9b"])
    assert capsys.readouterr().out == "ab\nc\tdé\n"
    terminal.show(piece for piece in [])
    assert capsys.readouterr().out == ""
