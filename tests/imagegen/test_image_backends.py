"""Back ends: the registry, what each refuses, pictures that follow from their settings."""

import base64
import http.server
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mgm_jax.imagegen import ImageGenError, ImageSettings, generate_image, make_backend
from mgm_jax.imagegen.prompts import NEGATIVE_PROMPT


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("dalle", [], "unknown image back end 'dalle', known: diffusers, openai_http, placeholder"),
        ("placeholder", ["size=3"], "'placeholder' has no option 'size=3', known: none"),
        ("openai_http", [], r"'openai_http' needs the option url=\.\.\."),
        ("openai_http", ["url"], r"has no option 'url', known: url=\.\.\., model=\.\.\."),
        ("openai_http", ["url=ftp://x"], "url is 'ftp://x', expected http:// or https://"),
        ("openai_http", ["url=http://x", "timeout=soon"], "timeout .* is 'soon', expected a float"),
        ("openai_http", ["url=http://x", "timeout=0"], "expected more than 0 seconds"),
        ("openai_http", ["url=http://x", "extensions=1"], "extensions .* '1', expected a bool"),
        ("diffusers", ["strength=0"], "strength is 0.0, expected a number, over 0 up to 1"),
    ],
)
def test_bad_back_ends(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_backend(name, options)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"seed": -1}, "seed is -1, expected an integer, 0 to 4294967295"),
        ({"seed": True}, "seed is True"),
        ({"width": 0}, "width is 0, expected an integer, 1 to 4096"),
        ({"height": 5000}, "height is 5000"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"guidance": float("nan")}, "guidance is nan, expected a number, 0 to 100"),
        ({"negative_prompt": 3}, "negative_prompt is 3, expected a text"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        ImageSettings(**values)


def test_placeholder_follows_from_prompt_and_settings():
    backend = make_backend("placeholder")
    settings = ImageSettings(seed=3, width=96, height=64)
    picture, used = generate_image(backend, " a red cat ", settings)
    assert picture.size == (96, 64) and picture.mode == "RGB"
    assert used == {
        "backend": "placeholder",
        "prompt": "a red cat",
        "negative_prompt": "",
        "seed": 3,
        "width": 96,
        "height": 64,
        "steps": 1,
        "guidance": 1.0,
    }
    assert generate_image(backend, "a red cat", settings)[0].tobytes() == picture.tobytes()
    others = [
        generate_image(backend, "a red dog", settings),
        generate_image(backend, "a red cat", ImageSettings(seed=4, width=96, height=64)),
        generate_image(backend, "a red cat", settings, Image.new("RGB", (8, 8), "white")),
    ]
    assert all(other.tobytes() != picture.tobytes() for other, _ in others)


def test_without_a_seed_one_is_drawn_and_told():
    _, used = generate_image(make_backend("placeholder"), "a cat")
    again, same = generate_image(
        make_backend("placeholder"), "a cat", ImageSettings(seed=used["seed"])
    )
    assert 0 <= used["seed"] < 2**32 and same == used


def test_a_blank_prompt_is_refused():
    with pytest.raises(ValueError, match="the prompt for a picture is empty"):
        generate_image(make_backend("placeholder"), " \n")


# --- over HTTP ---


class Server(http.server.ThreadingHTTPServer):
    """Answers POSTs with `reply` (status, headers, body) and remembers (path, headers, JSON)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.reply, self.delay = [], (200, {}, b""), 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers, json.loads(body)))
        time.sleep(self.server.delay)
        status, headers, data = self.server.reply
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def picture_reply(size=(8, 6), **more):
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, "PNG")
    item = {"b64_json": base64.b64encode(data.getvalue()).decode(), **more}
    return 200, {}, json.dumps({"created": 1, "data": [item]}).encode()


def test_http(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.reply = picture_reply(revised_prompt="a redder cat")
    backend = make_backend("openai_http", [f"url={server.url}", "model=sdxl"])
    picture, used = generate_image(backend, "a red cat", ImageSettings(width=8, height=6))
    assert picture.size == (8, 6) and picture.getpixel((0, 0)) == (255, 0, 0)
    ((path, headers, body),) = server.seen
    assert path == "/v1/images/generations" and headers["Authorization"] == "Bearer secret"
    assert body == {
        "prompt": "a red cat",
        "n": 1,
        "size": "8x6",
        "model": "sdxl",
        "response_format": "b64_json",
    }
    assert used["revised_prompt"] == "a redder cat" and used["server"] == server.url
    assert "secret" not in json.dumps(used)


def test_http_extensions_and_no_key(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.reply = picture_reply()
    options = [f"url={server.url}/", "extensions=true", "response_format="]
    settings = ImageSettings(seed=5, steps=4, guidance=2.0, negative_prompt="blur")
    _, used = generate_image(make_backend("openai_http", options), "a cat", settings)
    ((_, headers, body),) = server.seen
    assert "Authorization" not in headers
    assert body == {"prompt": "a cat", "n": 1, "seed": 5, "steps": 4, "guidance": 2.0} | {
        "negative_prompt": "blur"
    }
    assert (used["seed"], used["steps"], used["width"]) == (5, 4, 8)


def test_http_refuses_what_it_would_have_to_ignore(server):
    backend = make_backend("openai_http", [f"url={server.url}"])
    with pytest.raises(ValueError, match="'openai_http' can't follow guidance, seed, steps; it fo"):
        generate_image(backend, "a", ImageSettings(seed=1, steps=2, guidance=1.0))
    with pytest.raises(ValueError, match="can't follow init_image"):
        generate_image(backend, "a", init_image=Image.new("RGB", (2, 2)))
    with pytest.raises(ValueError, match="width is 8 and height None, expected both or none"):
        generate_image(backend, "a", ImageSettings(width=8))
    assert not server.seen


def json_reply(value, status=200):
    return status, {}, json.dumps(value).encode()


@pytest.mark.parametrize(
    "reply,message",
    [
        (json_reply({"error": {"message": "no credit"}}, 402), "status 402: no credit"),
        (json_reply({"error": "busy"}, 503), "status 503: busy"),
        ((500, {}, b"<html>"), "status 500: Internal Server Error"),
        ((302, {"Location": "/v1/elsewhere"}, b""), "status 302"),
        ((200, {}, b"<html>"), "the answer starts with '<html>', expected data"),
        (json_reply({"data": []}), r"expected data\[0\].b64_json .IndexError"),
        (json_reply({"data": [{"url": "http://x"}]}), r"expected data\[0\].b64_json .KeyError"),
        (json_reply({"data": [{"b64_json": "?"}]}), r"expected data\[0\].b64_json .Error"),
        (json_reply({"data": [{"b64_json": "AAAA"}]}), "picture in the answer: empty, damaged"),
        ((200, {"Content-Length": "99"}, b"{"), "the answer starts with '{'"),
    ],
)
def test_http_errors(server, monkeypatch, reply, message):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.reply = reply
    with pytest.raises(ImageGenError, match=f"^openai_http: {server.url}: .*{message}") as caught:
        generate_image(make_backend("openai_http", [f"url={server.url}"]), "a cat")
    assert len(server.seen) == 1 and "secret" not in str(caught.value)


def test_http_silence_and_nobody(server, monkeypatch):
    server.delay = 1
    options = [f"url={server.url}", "timeout=0.1"]
    with pytest.raises(ImageGenError, match="no answer within 0.1 seconds"):
        generate_image(make_backend("openai_http", options), "a cat")
    with pytest.raises(ImageGenError, match="refused"):
        generate_image(make_backend("openai_http", ["url=http://127.0.0.1:9/v1"]), "a cat")
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nand more")
    with pytest.raises(ImageGenError, match="the key in OPENAI_API_KEY holds characters") as caught:
        generate_image(make_backend("openai_http", options), "a cat")
    assert "secret" not in str(caught.value)


# --- diffusers ---


def test_diffusers_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImageGenError, match=r"pip install 'mgm-jax\[gen\]'; 'placeholder' needs n"):
        generate_image(make_backend("diffusers"), "a cat")


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory):
    """The folder of an SDXL pipeline with random small weights."""
    torch = pytest.importorskip("torch", reason="SDXL runs in PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the extra `gen` is not installed")
    transformers = pytest.importorskip("transformers", reason="SDXL's text encoders need it")
    folder = tmp_path_factory.mktemp("sdxl")
    (folder / "words").mkdir()
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{c}</w>" for c in "abcdefghijklmnop,")]
    words += list("abcdefghijklmnopqrstuvwxyz")
    vocabulary = {word: n for n, word in enumerate(words)}
    (folder / "words" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "words", model_max_length=77)
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        eos_token_id=1,
        bos_token_id=0,
        pad_token_id=1,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=[8, 8],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        ),
        text_encoder=transformers.CLIPTextModel(text),
        text_encoder_2=transformers.CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=64,
            norm_num_groups=4,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
    )
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def test_diffusers(tiny_sdxl):
    """SDXL's own pipeline: reproducible by seed, from a picture too, errors with the reason."""
    backend = make_backend("diffusers", [f"model={tiny_sdxl}", "variant=", "device=cpu"])
    settings = ImageSettings(seed=7, width=32, height=32, steps=2)
    picture, used = generate_image(backend, "a cat", settings)
    assert picture.size == (32, 32)
    assert used["negative_prompt"] == NEGATIVE_PROMPT and used["guidance"] == 5.0
    assert used["model"] == str(tiny_sdxl) and used["steps"] == 2
    again, _ = generate_image(backend, "a cat", settings)
    other, _ = generate_image(backend, "a cat", ImageSettings(seed=8, width=32, height=32, steps=2))
    assert again.tobytes() == picture.tobytes() != other.tobytes()
    white = Image.new("RGB", (64, 64), "white")
    changed, used = generate_image(backend, "a cat", settings, white)
    assert changed.size == (32, 32) and used["strength"] == 0.6
    assert np.any(np.asarray(changed) != np.asarray(picture))
    with pytest.raises(ValueError, match="width is 30, expected a multiple of 8"):
        generate_image(backend, "a cat", ImageSettings(width=30, height=32))


def test_diffusers_cannot_load(tmp_path):
    pytest.importorskip("diffusers", reason="the extra `gen` is not installed")
    backend = make_backend("diffusers", [f"model={tmp_path}", "variant="])
    with pytest.raises(ImageGenError, match=f"diffusers: cannot load '{tmp_path}'"):
        generate_image(backend, "a cat", ImageSettings(steps=1))
