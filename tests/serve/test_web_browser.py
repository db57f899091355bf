"""The web page, driven in a headless browser: ask, stream, stop, retry, paint, look."""

import re
import time

import pytest

from mgm_jax.serve.app import create_app
from mgm_jax.serve.microscope import mine
from mgm_jax.serve.service import Service
from tests.serve.conftest import LIMITS, Scripted, photo, running, uri, wait_until

QUESTION = "what is in the picture"
LAST = "#chat .bot.message"
# Every text that the last answer has shown, in order.
WATCH = """() => {
  window.shown = [];
  new MutationObserver(() => {
    const all = document.querySelectorAll("#chat .bot.message");
    const text = all.length ? all[all.length - 1].innerText.trim() : "";
    if (text && text != window.shown.at(-1)) window.shown.push(text);
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
WHOLE = """() => {
  const all = document.querySelectorAll("#chat .bot.message");
  const text = all.length ? all[all.length - 1].innerText.trim() : "";
  const sends = document.querySelector("#question button.submit-button");
  return sends && text && !text.startsWith("Loading");
}"""


@pytest.fixture(scope="module")
def site(served):
    """(service, url) of a page over the engine of another server."""
    pytest.importorskip("gradio", reason="gradio is not installed (extra: web)")
    service = Service(served.service.engine, limits=LIMITS, backend=served.service.backend)
    service.start = service.close = lambda: None  # the engine is the other server's
    service.ready = True
    with running(create_app(service, web=True)) as url:
        yield service, url


@pytest.fixture(scope="module")
def browser(browser_path):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(site, browser):
    """A fresh visit. In the end: nothing was asked of another host, no script failed."""
    page = browser.new_page(viewport={"width": 1100, "height": 850})
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(site[1])
    page.wait_for_selector("#question textarea")
    page.evaluate(WATCH)
    yield page
    page.close()
    assert not [url for url in asked if not url.startswith((site[1], "data:", "blob:"))]
    assert not failed


@pytest.fixture
def picture(tmp_path):
    photo(3).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def slowly(site, monkeypatch):
    """The engine, but 0.15 s slower with every piece of an answer; the tickets that it gave."""
    engine, tickets = site[0].engine, []
    submit = engine.submit

    def slow(request, sampling):
        tickets.append(submit(request, sampling, on_token=lambda _: time.sleep(0.15)))
        return tickets[-1]

    monkeypatch.setattr(engine, "submit", slow)
    return tickets


def ask(page, question, *files):
    if files:
        page.set_input_files("#question input[type=file]", files)
        page.wait_for_selector("#question img")
    page.locator("#question textarea").fill(question)
    page.locator("#question textarea").press("Enter")


def answer(page):
    """The last answer, once it is whole: the button that sends is back."""
    page.wait_for_function(WHOLE, timeout=60_000)
    return page.locator(LAST).last.inner_text().strip()


def letters(text):
    """Those of the tiny model's tokens that no Markdown changes."""
    return re.sub("[^A-Za-z]", "", text)


def test_an_answer_streams_and_is_that_of_the_api(served, page, picture, slowly):
    ask(page, QUESTION, picture)
    page.wait_for_selector("#question button.stop-button")
    found = answer(page)
    pieces = page.evaluate("window.shown")
    assert pieces[-1] == found and len(pieces) > 3
    assert all(letters(found).startswith(letters(piece)) for piece in pieces[1:])  # 0: it waits
    content = served.ask(uri(photo(3)), QUESTION, max_tokens=LIMITS.tokens).json()
    expected = content["choices"][0]["message"]["content"]
    assert len(letters(found)) > 40 and letters(found) == letters(expected)
    page.get_by_label("Retry").last.click()
    wait_until(lambda: len(slowly) == 2 and slowly[1].done())
    wait_until(lambda: answer(page) == found)  # for a moment the chat says that it loads
    assert page.locator("#chat .bot.message").count() == 1
    assert slowly[1].request == slowly[0].request


def test_stop_ends_the_work(site, page, slowly):
    ask(page, "tell me more")
    page.wait_for_selector(LAST)
    page.locator("#question button.stop-button").click()
    wait_until(slowly[0].done)
    assert slowly[0].result().finish == "cancelled"
    wait_until(lambda: site[0].open_requests == 0)
    ask(page, "and now")  # the chat goes on
    wait_until(lambda: len(slowly) == 2 and slowly[1].done())
    assert answer(page)


def test_a_painted_picture_stands_in_the_chat(site, page, monkeypatch):
    model = site[0].engine.model
    script = Scripted(model.tokenizer, "Sure, here. <h>a red fox in snow</h> It is cold. ")
    monkeypatch.setattr(model, "tokenizer", script)
    page.get_by_role("button", name="More").click()
    page.get_by_label("Paint a picture").check()
    ask(page, "draw me a fox")
    image = page.locator("#chat .bot img[src*='file=']")
    image.wait_for(timeout=60_000)
    page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    said = page.locator("#chat").inner_text()
    assert "Sure, here." in said and "<h>" not in said and "Prompt of the picture" in said


def test_too_many_pictures_are_refused_and_the_chat_goes_on(page, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(LIMITS.pictures + 1)]
    for i, file in enumerate(files):
        photo(i).save(file)
    ask(page, QUESTION, *files)
    page.get_by_text("found 5 pictures, expected at most 4").wait_for()
    wait_until(lambda: page.locator("#question button.submit-button").is_visible())
    ask(page, "hello")
    page.wait_for_function(f"() => document.querySelectorAll('{LAST}').length == 2")
    assert "expected" not in answer(page)


def test_the_microscope_shows_the_token_that_was_clicked(site, page, picture):
    page.get_by_role("tab", name="Mining microscope").click()
    page.set_input_files("#source input[type=file]", picture)
    whole = page.locator("#mined img")
    whole.wait_for(timeout=60_000)
    box, grid = whole.bounding_box(), mine(site[0].engine.model, photo(3)).grid
    whole.click(position={"x": 0.3 * box["width"], "y": 0.7 * box["height"]})
    page.get_by_text(f"Token ({int(0.7 * grid)}, {int(0.3 * grid)}) of {grid} x {grid}").wait_for()
    page.wait_for_selector("#closeup img")
