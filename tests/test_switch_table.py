"""The table of switches beside MGM_SPEC appendix D, and what reads it outside of training."""

import contextlib
import dataclasses
import json

import pytest
from golden_families import complete
from mgm_jax.configs import common
from PIL import Image

import mgm_jax
from mgm_jax import cli
from mgm_jax.convert.overrides import with_switches
from mgm_jax.generate import answers, terminal
from mgm_jax.generate.tickets import Answer
from mgm_jax.models.config import MgmConfig
from mgm_jax.switches import BY_NAME, SWITCHES, choose
from mgm_jax.text import FAITHFUL, get_template, stop_rule

APPENDIX_D = {  # switch: (faithful, fixed)
    "llama3_assistant_header": ("system", "assistant"),
    "llama3_released_prompt": ("current", "release"),
    "gemma_act": ("erf", "tanh"),
    "gemma_scale_rounding": ("exact", "rounded"),
    "grad_clip": (None, 1.0),
    "frozen_tower_drop_path": (0.1, 0.0),
    "mismatch_policy": ("mask_sample", "span"),
    "loss_reduction": ("microbatch", "tokens"),
    "nan_loss_on_empty": (True, False),
    "cli_eos": ("tokenizer", "family"),
    "cli_auto_template": ("vicuna_v1", "llama_3"),
    "worker_insert": ("reference", "before_header"),
    "mmmu_decode": ("beam_sample", "greedy"),
    "multi_image_training": (False, True),
    "infer_truncate": ("cut", "error"),
    "m4c_period_count": (32, None),
}
# What released weights were made with and numbers are compared by stays the default; else what is
# fixed.
DEFAULT_IS_FAITHFUL = {"llama3_assistant_header", "llama3_released_prompt", "m4c_period_count"}


def test_every_row_of_the_appendix_is_a_switch():
    assert {s.name: (s.faithful, s.fixed) for s in SWITCHES if s.name != "input_policy"} == (
        APPENDIX_D
    )
    for name, (faithful, fixed) in APPENDIX_D.items():
        default = faithful if name in DEFAULT_IS_FAITHFUL else fixed
        assert BY_NAME[name].default == (None if BY_NAME[name].where == "model" else default)


def test_faithful_is_the_whole_left_column():
    config = common.train_config(faithful=True)
    found = config.switches.to_dict() | {"grad_clip": config.optim.clip}
    found |= common.eval_config({}, faithful=True).switches.to_dict() | choose(
        "chat", faithful=True
    )
    assert FAITHFUL.items() <= found.items() and found.pop("input_policy") == "accept"
    later = {s.name for s in SWITCHES if s.where == "serve"}
    assert found == {n: f for n, (f, _) in APPENDIX_D.items() if n not in later}
    plain = common.train_config()
    assert plain.optim.clip == 1.0 and plain.switches.frozen_tower_drop_path == 0.0


@pytest.mark.parametrize(
    "chosen,message",
    [
        ({"colour": 1}, "unknown switch 'colour', known: cli_eos, cli_auto_template"),
        ({"grad_clip": 1.0}, "switch 'grad_clip' belongs to optim, known here: cli_eos"),
        ({"mmmu_decode": "greedy"}, "switch 'mmmu_decode' belongs to eval, known here: cli_eos"),
        ({"worker_insert": "reference"}, "'worker_insert' is not implemented yet"),
        ({"cli_eos": "odd"}, r"cli_eos is 'odd', expected one of \['family', 'tokenizer'\]"),
    ],
)
def test_bad_switches(chosen, message):
    with pytest.raises(ValueError, match=message):
        choose("chat", chosen=chosen)


@pytest.mark.parametrize("value", [1.0, -0.1, "0.1", True, float("nan")])
def test_a_rate_is_a_number_below_1(value):
    with pytest.raises(ValueError, match=r"frozen_tower_drop_path is .*, expected a number in \["):
        choose("training", chosen={"frozen_tower_drop_path": value})
    assert choose("training", chosen={"frozen_tower_drop_path": 0.25})


def test_what_is_about_gemma_changes_gemma_alone(tmp_path):
    values = {"gemma_act": "tanh", "gemma_scale_rounding": "rounded"}
    directory = complete("gemma", tmp_path)
    llm = mgm_jax.load(directory, dtype="float32", switches=values).config.llm
    assert (llm.act, llm.embed_scale) == ("gelu_tanh", "rounded")
    config = json.loads((directory / "config.json").read_text())
    text = json.dumps(config | {"hidden_activation": "gelu_pytorch_tanh"})
    (directory / "config.json").write_text(text)
    assert mgm_jax.load(directory, dtype="float32").config.llm.act == "gelu_tanh"
    model = mgm_jax.load(directory, dtype="float32", faithful=True)
    assert (model.config.llm.act, model.config.llm.embed_scale) == ("gelu", "exact")
    assert model.switches == {"llama3_released_prompt": "current", "infer_truncate": "cut"}


def test_gemma_switches_elsewhere(tiny_config):
    cfg = MgmConfig.from_dict(tiny_config().model.to_dict())
    assert with_switches(cfg, choose("model", faithful=True)) == cfg
    with pytest.raises(ValueError, match="gemma_act is 'tanh', but the language model is no Gemma"):
        with_switches(cfg, {"gemma_act": "tanh"})


@pytest.fixture(scope="module")
def model(tiny_demo):
    model = mgm_jax.load(tiny_demo / "base_mining", dtype="float32")
    provenance = {"config.json": {"tokenizer_model_max_length": 80}}
    return dataclasses.replace(model, provenance=provenance)


@pytest.fixture
def prompts(monkeypatch):
    """The (tokens, places of visual tokens) of every prompt that is generated from."""
    seen = []

    def read_only(model, items, **_):
        for request, _, _ in items:
            prompt = model.encode(request)
            seen.append((prompt.tokens.tolist(), prompt.visual.tolist()))
            yield Answer("", (), "stop", len(prompt), 0, None, ())

    monkeypatch.setattr(answers, "answers", read_only)
    return seen


def test_infer_truncate(model, prompts, caplog):
    """A prompt beyond the model's length is refused, used with a warning, or cut in silence."""
    long = "Hello, " + "one two " * 30
    model.chat("Hello")
    with pytest.raises(ValueError, match=r"has \d+ tokens with its 0 picture.s., more than the"):
        model.chat(long)
    for way in ("cut", "warn"):
        dataclasses.replace(model, switches={"infer_truncate": way}).chat(long)
        warned = "tokenizer_model_max_length" in caplog.text
        assert warned == (way == "warn")
    dataclasses.replace(model, provenance={}).chat(long)
    short, cut, used, whole = (tokens for tokens, _ in prompts)
    assert len(short) < 80 == len(cut) < len(whole) and used == whole and cut == whole[:80]


def test_the_prompt_of_the_released_mgm_8b(model, prompts):
    """One bos in any case, and no newline behind a picture (MGM_SPEC 5.6)."""
    for template in ("llama_3", "v1"):
        for way in ("current", "release"):
            switches = {"llama3_released_prompt": way, "infer_truncate": "warn"}
            changed = dataclasses.replace(model, template=template, switches=switches)
            changed.chat("What?", [Image.new("RGB", (8, 8))])
    (now, places), (then, _), *others = prompts
    newline = max(n for n, place in enumerate(places) if place >= 0) + 1
    assert not model.tokenizer.decode([now[newline]]).strip()
    assert then == now[:newline] + now[newline + 1 :]
    assert others[0] == others[1]


def test_cli_eos(tiny_tokenizer):
    tokenizer = mgm_jax.text.load_tokenizer(tiny_tokenizer).with_tokens(["<|eot_id|>"])
    template = get_template("llama_3")
    eot = tokenizer.special_tokens["<|eot_id|>"]
    assert eot in stop_rule(template, tokenizer)[0]
    assert stop_rule(template, tokenizer, "tokenizer") == (frozenset({tokenizer.eos_id}), ())


def test_the_chats_switches(model):
    switches, ours = terminal.parse_switches(["infer_truncate=warn"], faithful=True)
    assert switches == choose(("model", "load"), True, {"infer_truncate": "warn"})
    assert ours == {"cli_eos": "tokenizer", "cli_auto_template": "vicuna_v1"}
    assert terminal.parse_switches([])[1] == {"cli_eos": "family", "cli_auto_template": "llama_3"}
    llama3 = dataclasses.replace(model, template="llama_3")
    assert terminal.with_template(llama3, "vicuna_v1").template == "v1"
    assert terminal.with_template(llama3, "llama_3").template == "llama_3"
    gemma = dataclasses.replace(model, template="gemma")
    assert terminal.with_template(gemma, "vicuna_v1").template == "gemma"


def test_the_chats_engine_ends_answers_as_told(model):
    asked = {}

    class Recorder:
        def __init__(self, model, **options):
            asked.update(options)

        def start(self):
            return contextlib.nullcontext(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "Engine", Recorder)
        with terminal.engine_stream(model, "tokenizer", 64):
            assert (asked["cli_eos"], asked["max_length"]) == ("tokenizer", 64)


@pytest.mark.parametrize(
    "options,words",
    [
        (["--switch", "colour=red"], "unknown switch 'colour'"),
        (["--switch", "cli_eos"], "--switch 'cli_eos': expected NAME=VALUE"),
        (["--switch", "worker_insert=reference"], "not implemented yet"),
    ],
)
def test_bad_switches_of_the_chat(options, words, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(["chat", str(tmp_path), *options, "--question", "Hi"])
    assert words in str(caught.value.code)
