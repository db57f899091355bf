"""Pictures on disk with their settings inside, and the loop of critique."""

import json
import threading

import pytest
from PIL import Image

from mgm_jax.data.images import ImageError
from mgm_jax.imagegen import (
    GEN,
    ImageSettings,
    Painter,
    improve,
    log_path,
    make_backend,
    read_settings,
    save_picture,
)


@pytest.fixture
def painter(tmp_path):
    settings = ImageSettings(seed=1, width=32, height=32)
    return Painter(make_backend("placeholder"), tmp_path / "pictures", settings)


def test_the_settings_are_inside(painter):
    painted = painter.paint("Ein Kätzchen, 猫!")
    assert painted.path.name.endswith("-ein-k-tzchen.png")
    assert read_settings(painted.path) == painted.settings
    assert painted.settings["prompt"] == "Ein Kätzchen, 猫!" and painted.settings["seed"] == 1
    assert Image.open(painted.path).convert("RGB").tobytes() == painted.picture.tobytes()


def test_a_name_is_never_taken_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("mgm_jax.imagegen.files.time.strftime", lambda form: "now")
    paths = []

    def save(n):
        picture = Image.new("RGB", (4, 4))
        paths.append(save_picture(picture, tmp_path, {"prompt": "../a b/c", "n": n}))

    threads = [threading.Thread(target=save, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 8 and all(path.parent == tmp_path for path in paths)
    assert sorted(read_settings(path)["n"] for path in paths) == list(range(8))
    assert sorted(paths)[-1].name == "now-a-b-c.png"


def test_files_that_were_not_painted(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.jpg")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("plain.png", "plain.jpg"):
        with pytest.raises(ValueError, match=f"{name}: found no settings, expected a PNG that mgm"):
            read_settings(tmp_path / name)
    for name, why in (("text.png", "damaged"), ("none.png", "the file is missing")):
        with pytest.raises(ImageError, match=f"{name}: .*{why}"):
            read_settings(tmp_path / name)


def test_the_loop(painter):
    """The model sees each picture with its prompt; its critiques and prompts are kept."""
    answers = iter(["Too red. <h>a blue cat</h>", "Too blue. <h>a green cat</h>", "unused"])
    asked = []

    def ask(question, picture):
        asked.append((question, picture))
        return next(answers)

    first = painter.paint("a red cat")
    rounds = list(improve(ask, painter, first, 2))
    assert [(r.critique, r.prompt) for r in rounds] == [
        ("Too red.", "a blue cat"),
        ("Too blue.", "a green cat"),
    ]
    assert [p for _, p in asked] == [first.picture, rounds[0].painted.picture]
    assert "a red cat" in asked[0][0] and "a blue cat" in asked[1][0] and asked[0][0].endswith(GEN)
    log = json.loads(log_path(first).read_text())
    assert [entry["prompt"] for entry in log] == ["a red cat", "a blue cat", "a green cat"]
    assert [entry["round"] for entry in log] == [0, 1, 2] and log[2]["critique"] == "Too blue."
    inside = read_settings(first.path.parent / log[1]["file"])
    assert (inside["critique"], inside["round"]) == ("Too red.", 1)


@pytest.mark.parametrize(
    "answer,why", [("All well.", "wrote no prompt"), ("<h>a cat</h>", "the same prompt again")]
)
def test_the_loop_ends_early(painter, answer, why):
    first = painter.paint("a cat")
    (only,) = improve(lambda question, picture: answer, painter, first, 3)
    assert why in only.stopped and only.painted is None
    assert len(json.loads(log_path(first).read_text())) == 2
    assert len(list(painter.folder.glob("*.png"))) == 1
