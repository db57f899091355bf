"""The web page's way to the model: messages of gradio's chat, uploads, and the page itself."""

import httpx
import pytest

from mgm_jax.serve.app import create_app
from mgm_jax.serve.errors import ApiError
from mgm_jax.serve.service import Service
from mgm_jax.serve.web import REFUSED, _upload, turns
from tests.serve.conftest import running


def test_messages_of_the_chat():
    """Notes, painted pictures and what was refused are not sent back; messages of one side become
    one turn."""
    file = {"type": "file", "file": {"path": "/uploads/a.png"}}
    history = [
        {"role": "user", "content": [{"type": "text", "text": "too much"}]},
        {"role": "assistant", "content": "no", "metadata": {"title": REFUSED}},
        {"role": "user", "content": [file]},
        {"role": "user", "content": [{"type": "text", "text": "what"}]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "b"}],
            "metadata": {"title": "x"},
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a fox"}], "metadata": None},
        {"role": "assistant", "content": [file]},
    ]
    asked = {"text": "and now", "files": ["/uploads/b.png", {"path": "/uploads/c.png"}]}
    found = list(turns([*history, {"role": "user", "content": asked}]))

    def image(name):
        return {"type": "image_url", "image_url": {"url": f"/uploads/{name}.png"}}

    def text(value):
        return {"type": "text", "text": value}

    assert found == [
        {"role": "user", "content": [image("a"), text("what")]},
        {"role": "assistant", "content": [text("a fox")]},
        {"role": "user", "content": [image("b"), image("c"), text("and now")]},
    ]


def test_only_uploads_are_read(tmp_path):
    uploads, other = tmp_path / "uploads", tmp_path / "secret"
    uploads.mkdir()
    other.write_bytes(b"secret")
    (uploads / "a").write_bytes(b"mine")
    (uploads / "link").symlink_to(other)
    assert _upload(str(uploads / "a"), uploads) == b"mine"
    for path in (other, uploads / ".." / "secret", uploads / "link", "/etc/passwd"):
        with pytest.raises(ApiError, match="no upload"):
            _upload(str(path), uploads)


def test_the_page_asks_for_nothing_from_elsewhere(served):
    pytest.importorskip("gradio", reason="gradio is not installed (extra: web)")
    service = Service(served.service.engine, backend=served.service.backend)
    service.start = service.close = lambda: None  # the engine is another server's
    service.ready = True
    with running(create_app(service, web=True)) as url:
        answer = httpx.get(url, follow_redirects=True)
        assert answer.status_code == 200 and answer.url.path.startswith("/web")
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert httpx.get(f"{url}/v1/models").status_code == 200
        other = httpx.get(f"{url}/web/gradio_api/file=/etc/passwd")
        assert other.status_code in (403, 404) and "root:" not in other.text
