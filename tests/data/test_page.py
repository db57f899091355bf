"""`data.page`: what a page of a batch shows, also in a browser."""

import base64
import dataclasses
import html.parser
import io
import subprocess

import batch_case
import numpy as np
import pytest
from PIL import Image

from mgm_jax.data.images import preprocess
from mgm_jax.data.page import page
from mgm_jax.data.page_style import LOSS
from mgm_jax.data.rows import supervised
from mgm_jax.data.thumbnails import data_uri, low_views
from mgm_jax.text import load_tokenizer


@pytest.fixture(scope="module", params=[None, batch_case.HD], ids=["plain", "hd"])
def case(request, tiny_config, tiny_demo, tiny_tokenizer):
    files = sorted((tiny_demo / "data" / "images" / "train").iterdir())
    model = tiny_config().model.to_dict()
    return batch_case.make(model, load_tokenizer(tiny_tokenizer), files, request.param)


def draw(case, rows=4, arrays=None):
    options = dict(heading="Batch <7>", detail="tiny.py", rows=rows)
    found = case.arrays if arrays is None else arrays
    return page(found, case.members(0), case.tokenizer, case.cfg, **options)


@dataclasses.dataclass
class Element:
    tag: str
    attributes: dict
    inside: tuple  # ids and classes of what it lies in, outermost first
    text: str = ""


class Parser(html.parser.HTMLParser):
    """Elements of a page in order, each with its own text."""

    VOID = ("img", "meta", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        names = (e.attributes.get(k) for e in self.open for k in ("id", "class"))
        self.elements.append(Element(tag, dict(attrs), tuple(filter(None, names))))
        if tag not in self.VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self.open and self.open.pop().tag != tag:
            pass

    def handle_data(self, data):
        if self.open:
            self.open[-1].text += data


def test_every_record_is_named_and_nothing_is_markup(case):
    text = draw(case)
    for row in case.records:
        for record in row:
            assert record.where.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "<script" not in text and "<cards>" not in text and "Batch &lt;7&gt;" in text
    assert "http" not in text  # nothing is fetched
    articles = [e.attributes["id"] for e in Parser(text).elements if e.tag == "article"]
    assert articles == ["r0s1", "r0s2", "r1s1", "r2s1", "r2s2"]


def test_tokens_with_loss_are_those_of_the_batch(case):
    tokens = case.arrays["tokens"]
    learnt, _ = supervised(case.arrays)
    elements = [e for e in Parser(draw(case)).elements if "data-t" in e.attributes]
    assert [e.tag for e in elements if e.tag == "b"] == ["b"] * int(learnt.sum())
    text = [e for e in elements if e.tag in ("b", "i")]
    is_text = (case.arrays["segments"] > 0) & (case.arrays["visual_index"] < 0)
    places = np.argwhere(is_text)
    assert len(text) == len(places)
    for element, at in zip(text, map(tuple, places), strict=True):
        assert (element.tag == "b") == learnt[at]
        found = dict(fact.split() for fact in element.attributes["data-t"].split(", "))
        values = {"id": "tokens", "position": "positions"}
        values |= {"target": "targets", "weight": "loss_weights"}
        for name, array in values.items():
            assert float(found[name]) == case.arrays[array][at]
        special = tokens[at] in (case.tokenizer.bos_id, case.tokenizer.eos_id)
        assert (element.attributes.get("class") == "special") == special
    whole = "".join(e.text for e in text).replace("␣", " ")  # a space that is a token
    assert "<script>alert('3')</script> & more</s>" in whole
    assert "Say↵\nhello" in whole and r"\xe2\x80\x8b" in whole
    boxes = [e for e in elements if e.tag == "a"]
    assert [e.text for e in boxes] == [f"<image> × {case.cfg.visual_tokens}"] * 5


def test_the_last_visual_token_may_predict_text(case):
    """As in captions, where the answer follows the picture."""
    last = int(np.flatnonzero(case.arrays["visual_index"][0] >= 0)[-1])
    weights = case.arrays["loss_weights"].copy()
    weights[0, last] = 0.5
    text = draw(case, arrays=case.arrays | {"loss_weights": weights})
    elements = [e for e in Parser(text).elements if "data-t" in e.attributes]
    at = next(i for i, e in enumerate(elements) if e.tag == "a")
    target = case.arrays["targets"][0, last]
    assert elements[at].attributes["data-t"].endswith(f"target {target}, weight 0.5")
    assert elements[at + 1].tag == "b" and "class=warning" not in text


def test_pictures_are_those_that_the_model_sees(case):
    elements = Parser(draw(case)).elements
    shown = [e for e in elements if e.tag == "img"]
    used, crops = 5, case.cfg.image.crops
    figures = [e for e in shown if "views" in e.inside]
    assert len(figures) == used * (1 + crops) and len(shown) == used * (2 + crops)
    first = next(p for row in case.records for r in row for p in r.images)
    lr, _ = preprocess(Image.open(first.name), case.cfg.image)
    lr = 255 * (lr * np.array(case.cfg.image.std) + np.array(case.cfg.image.mean))
    wanted = [case.arrays["images"][0, 0], *lr.reshape(-1, *lr.shape[-3:])]
    for element, pixels in zip(figures[: 1 + crops], wanted, strict=True):
        data = base64.b64decode(element.attributes["src"].split(",")[1])
        found = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_allclose(found, pixels, atol=0.51)
    captions = [e.text for e in elements if e.tag == "figcaption"][:3]
    plain = ["HR 32 px", "LR 8 px", "HR 32 px"]
    assert captions == (plain if crops == 1 else ["HR 32 px", "4 crops 8 px", "global 8 px"])


def test_only_so_many_rows(case):
    text = draw(case, rows=1)
    assert "the first 1 of 4 rows" in text and "1 of 2 groups" in text
    elements = Parser(text).elements
    assert [e.attributes["id"] for e in elements if e.tag == "article"] == ["r0s1", "r0s2"]
    # A picture of the group that a row beyond takes is shown there, but leads nowhere.
    ids = {e.attributes.get("id") for e in elements}
    links = {e.attributes["href"][1:] for e in elements if "href" in e.attributes}
    assert links <= ids
    assert "all rows" in draw(case) and "all rows" in draw(case, rows=99)


def test_what_is_wrong_with_a_batch_is_said(case):
    assert "class=warning" not in draw(case)
    position = int(np.flatnonzero(case.arrays["loss_weights"][0])[0])
    targets = case.arrays["targets"].copy()
    targets[0, position] = case.tokenizer.eos_id
    text = draw(case, arrays=case.arrays | {"targets": targets})
    assert f"the first is position {position} of row 0" in text
    assert "<em>weight 1 on &lt;/s&gt;</em>" in text
    weights = case.arrays["loss_weights"].copy()
    weights[0, np.flatnonzero(case.arrays["visual_index"][0] >= 0)[:2]] = 1
    assert "<em>weight 1 on " in draw(case, arrays=case.arrays | {"loss_weights": weights})


def test_thumbnails_are_small(case):
    pixels = np.random.default_rng(0).integers(0, 255, (768, 768, 3), np.uint8)
    data = base64.b64decode(data_uri(pixels, 384).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (384, 384) and len(data) < 110_000
    assert low_views(case.arrays["images"][0, 0], case.cfg.image).dtype == np.uint8


@pytest.fixture(scope="module")
def chromium(browser_path, tmp_path_factory):
    """(*arguments) -> the finished process of a headless browser."""
    profile = tmp_path_factory.mktemp("chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += [f"--user-data-dir={profile}", "--window-size=1300,1600"]

    def run(*arguments):
        done = subprocess.run(
            [browser_path, *options, *arguments], capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()
        return done

    return run


def test_a_browser_shows_it(case, chromium, tmp_path):
    file, shot = tmp_path / "page.html", tmp_path / "shot.png"
    file.write_text(draw(case), encoding="utf-8")
    chromium(f"--screenshot={shot}", file.as_uri())
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (1600, 1300, 3)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    loss = tuple(bytes.fromhex(LOSS[1:]))
    assert len(colours) > 200
    assert dict(zip(map(tuple, colours.tolist()), counts, strict=True))[loss] > 500
    dom = Parser(chromium("--dump-dom", file.as_uri()).stdout.decode()).elements
    rows = [e.attributes["id"] for e in dom if e.attributes.get("class") == "row"]
    assert rows == ["r0", "r1", "r2", "r3"]
    assert sum(e.tag == "article" for e in dom) == 5
    assert sum(e.attributes.get("class") == "bar" for e in dom) == 4
