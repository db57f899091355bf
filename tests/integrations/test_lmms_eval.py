"""The plug-in of lmms-eval against stubs of its base class and registry: it pins heavy packages."""

import dataclasses
import importlib.metadata
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mgm_jax
from mgm_jax.integrations.lmms_eval_plugin import manifest


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Base:
    """As `lmms_eval.api.model.lmms`."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict, self.cached = 0, 1, {}, []
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *a: self.cached.append(a))

    rank = property(lambda self: self._rank)


@pytest.fixture
def adapter(monkeypatch):
    """The adapter's module, with a stub of lmms_eval."""
    for name, parts in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    name = "mgm_jax.integrations.lmms_eval_adapter"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name, raising=False)


def picture(seed):
    pixels = np.random.default_rng(seed).integers(256, size=(60, 90, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA")


def test_the_entry_point_leads_to_the_class(adapter):
    """That of setup.py: what is installed may be older."""
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    (value,) = re.findall(r'"lmms_eval\.models": \["mgm_jax = (\S+)"\]', setup)
    entry = importlib.metadata.EntryPoint("mgm_jax", value, "lmms_eval.models")
    found = entry.load()()
    assert entry.load() is manifest and isinstance(found, ModelManifest)
    assert (found.model_id, found.aliases) == ("mgm_jax", ("mini_gemini_jax",))
    assert found.simple_class_path is None
    module, name = found.chat_class_path.rsplit(".", 1)
    cls = getattr(importlib.import_module(module), name)
    assert issubclass(cls, Base) and cls.is_simple is False


def test_importing_it_imports_no_jax():
    """Neither the plug-in, nor, with lmms-eval's base class, the adapter."""
    code = (
        "import sys, types, mgm_jax.integrations.lmms_eval_plugin\n"
        "assert not {'jax', 'torch', 'lmms_eval'} & set(sys.modules)\n"
        "sys.modules |= {n: types.ModuleType(n) for n in ('lmms_eval', 'lmms_eval.api', "
        "'lmms_eval.api.model')}\n"
        "sys.modules['lmms_eval.api.model'].lmms = type('lmms', (), {})\n"
        "import mgm_jax.integrations.lmms_eval_adapter\n"
        "assert not {'jax', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Request:
    """As `lmms_eval.api.instance.Instance`."""

    def __init__(self, doc_id, gen_kwargs, task="task"):
        self.args = (f"context {doc_id}", self.messages, gen_kwargs, doc_id, task, "test")

    @staticmethod
    def messages(doc):
        parts = [{"type": "image", "url": p} for p in doc["pictures"]]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["text"]}]}]


def test_requests_are_batched_by_their_settings(adapter, monkeypatch):
    """A model that repeats what it is asked, in our own requests."""
    calls = []

    def generate(requests, *, max_new_tokens, batch_size):
        calls.append((max_new_tokens, batch_size, len(requests)))
        assert all(isinstance(r, mgm_jax.Request) for r in requests)
        # `turns` raises if pictures and placeholders do not match
        return [f"{r.turns()[-1].text} {[p.mode for p in r.images]}\n\nmore" for r in requests]

    def load(directory, **options):
        calls.append((directory, options))
        return types.SimpleNamespace(generate=generate)

    monkeypatch.setattr("mgm_jax.api.load", load)
    model = adapter.MGMJax(pretrained="dir", batch_size="3", dtype="float32")
    docs = [{"pictures": [picture(i)] * (i % 3), "text": f"What is <image>{i}?"} for i in range(8)]
    model.task_dict = {"task": {"test": docs}}
    longer = {"max_new_tokens": 8, "temperature": 0.0, "do_sample": False, "until": ["\n\n"]}
    longer |= {"top_p": 1.0, "num_beams": 1}
    kwargs = [longer if i % 2 else {"max_new_tokens": 5} for i in range(8)]
    before = [dict(k) for k in kwargs]
    found = model.generate_until([Request(i, k) for i, k in enumerate(kwargs)])
    for i, text in enumerate(found):
        expected = "<image>\n" * (i % 3) + f"What is {i}? {['RGB'] * (i % 3)}"
        assert text == (expected if i % 2 else f"{expected}\n\nmore")
    assert calls == [
        ("dir", {"dtype": "float32", "mesh": None}),
        *[(5, 3, 3), (5, 3, 1), (8, 3, 3), (8, 3, 1)],
    ]
    assert kwargs == before
    assert sorted(c[2] for c in model.cached) == sorted(found)
    assert {c[1][0] for c in model.cached} == {f"context {i}" for i in range(8)}


def test_messages(adapter):
    turns, pictures = adapter.read_messages(
        [
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Compare "},
                    {"type": "image", "url": "a.png"},
                    {"type": "text", "text": "with that."},
                ],
            },
        ],
        "here",
    )
    assert turns[:2] == [("user", "What?"), ("assistant", "A cat.")]
    assert turns[2] == ("user", "Compare <image>\nwith that.") and pictures == ["a.png"]
    for role, content, message in (
        ("system", "Be brief.", "here: a system message; the template brings its own"),
        (
            "user",
            [{"type": "video", "url": "a.mp4"}],
            "here: found video, expected text and images",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            adapter.read_messages([{"role": role, "content": content}], "here")


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, (1024, ())),
        ({"max_new_tokens": 16, "until": "\n"}, (16, ("\n",))),
        ({"until": ["", "###"], "temperature": 0, "top_p": 0}, (1024, ("###",))),
        ({"temperature": 0.2, "do_sample": False}, (1024, ())),
        ({"temperature": 1.0, "do_sample": True, "top_k": 1}, (1024, ())),
        ({"do_sample": True}, (1024, ())),
    ],
)
def test_generation_kwargs(adapter, given, expected):
    assert adapter.read_settings(given, "task x") == expected


@pytest.mark.parametrize(
    "given, message",
    [
        ({"temperature": 0.2}, "task x: temperature is 0.2, but answers are greedy here"),
        ({"num_beams": 5}, "task x: num_beams is 5, but answers are greedy here"),
        ({"visual_cot": True}, "task x: generation_kwargs has 'visual_cot', known: max_new_tokens"),
        ({"max_new_tokens": 0}, "task x: max_new_tokens is 0, expected a number of at least 1"),
        ({"until": [3]}, "task x: until is .*, expected strings"),
    ],
)
def test_generation_kwargs_that_cannot_be(adapter, given, message):
    with pytest.raises(ValueError, match=message):
        adapter.read_settings(given, "task x")


def test_llavas_picture_mode_is_not_ours(adapter):
    with pytest.warns(UserWarning, match="image_aspect_ratio is LLaVA's"):
        adapter.read_settings({"image_aspect_ratio": "original"}, "task x")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"device": "cuda:0"}, "device is 'cuda:0': jax chooses it"),
        ({"batch_size": "auto"}, "batch_size is 'auto', expected a number"),
        ({"conv_template": "v1"}, "no model argument 'conv_template', known: pretrained"),
        ({"mesh": "fsdp"}, "mesh is 'fsdp', expected AXIS:SIZE"),
    ],
)
def test_model_arguments_that_cannot_be(adapter, given, message):
    with pytest.raises(ValueError, match=message):
        adapter.MGMJax(**{"pretrained": "none", **given})


def test_one_program_and_one_round(adapter, monkeypatch):
    assert adapter.parse_mesh("fsdp:4+tensor:2") == {"fsdp": 4, "tensor": 2}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start lmms-eval once, with mesh="):
        adapter.MGMJax(pretrained="none")
    for name in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(NotImplementedError, match="mgm_jax "):
            getattr(adapter.MGMJax, name)(None, [])
