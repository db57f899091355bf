"""A real pretrained decoder, SmolLM2-135M-Instruct, through the importer (`make assets-llm`).

Slow: 135 M parameters in float32 through two frameworks. Run with `pytest -m slow`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.checkpoint import load_checkpoint
from mgm_jax.convert.checkpoints import from_hf
from mgm_jax.models.decoder import Decoder, empty_cache
from tests.convert.gguf_llama import write_hf

ASSETS = Path(__file__).parents[2] / ".assets"
MODEL = ASSETS / "smollm2" / "model.gguf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.exists(), reason="no SmolLM2: `make assets-llm`"),
]
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "Write one sentence about a cat.": "cat",
}
LENGTH = 96


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The language model as Hugging Face has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ASSETS / "gguf"))
        root = tmp_path_factory.mktemp("smollm2")
        write_hf(MODEL, root / "hf")
    return root / "hf"


@pytest.fixture(scope="module")
def checkpoint(directory):
    from_hf(directory, directory.parent / "ours", template="chatml_direct", progress=False)
    return load_checkpoint(directory.parent / "ours")


def prompt(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def logits_of(checkpoint, ids):
    """[T, V] float32, without a cache."""

    def run(params, ids):
        decoder = Decoder(checkpoint.config["llm"])

        def forward(m):
            states, _ = m(m.embed(ids), jnp.arange(ids.shape[1])[None], jnp.ones_like(ids))
            return m.head(states)

        return decoder.apply({"params": params}, method=forward)

    return np.asarray(jax.jit(run)(checkpoint.params["llm"], jnp.asarray([ids]))[0])


def greedy(checkpoint, ids, new):
    """`new` ids behind the prompt, through the KV cache."""
    cfg, params, (n, end) = checkpoint.config["llm"], checkpoint.params["llm"], (len(ids), LENGTH)

    @jax.jit
    def extend(params, ids, positions, cache):
        def forward(m):
            mask = jnp.arange(end) <= positions[..., None]
            x = m.embed(ids)
            states, after = m.extend(x, positions, mask, cache, positions[0, 0])
            return m.head(states[:, -1]), after

        return Decoder(cfg).apply({"params": params}, method=forward)

    cache, found, tokens = empty_cache(cfg, 1, end), [], np.asarray([ids])
    for at in range(n, n + new):
        positions = np.arange(at - tokens.shape[1], at)[None]
        logits, cache = extend(params, tokens, positions, cache)
        found.append(int(np.argmax(logits[0])))
        tokens = np.asarray([found[-1:]])
    return found


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_answers(checkpoint, question):
    tokenizer = checkpoint.tokenizer
    ids = tokenizer.encode(prompt(question))
    assert tokenizer.special_tokens["<|im_start|>"] == ids[0]
    found = greedy(checkpoint, ids, 40)
    end = tokenizer.special_tokens["<|im_end|>"]
    assert end in found, tokenizer.decode(found)
    text = tokenizer.decode(found[: found.index(end)])
    print(f"{question} -> {text}")
    assert QUESTIONS[question] in text and text.isprintable()


def test_logits_and_tokens_of_transformers(checkpoint, directory):
    """On the same dequantised weights: logits to 2e-4, log-probabilities' argmax exactly."""
    torch = pytest.importorskip("torch", reason="PyTorch is the independent reference")
    transformers = pytest.importorskip("transformers", reason="the independent reference")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = prompt("Write two sentences about 1,234 cats.") + "A cat is a small animal. It"
    ids = checkpoint.tokenizer.encode(text)
    assert ids == theirs(text)["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
        answer = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
    found = logits_of(checkpoint, ids)
    print(f"{found.shape} logits differ by {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert (found.argmax(-1) == expected.argmax(-1)).all()
    assert (
        greedy(checkpoint, ids, 16)[: answer.shape[1] - len(ids)] == answer[0, len(ids) :].tolist()
    )
