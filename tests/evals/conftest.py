"""Cases of benchmarks, and their predictions as files."""

import json

import pytest
from eval_cases import build
from runner_case import write_model, write_questions

from mgm_jax.evals import get


@pytest.fixture
def make_case(tmp_path):
    """name -> (case, questions, predictions file) of the stub model that is right on 13 of 20."""

    def make(name):
        benchmark, case = get(name), build(name, tmp_path / name)
        options = benchmark.chosen(case.options)
        asked = list(benchmark.questions(case.questions, case.images, options))
        lines = [
            benchmark.line(question, benchmark.postprocess(reply), "stub")
            for question, reply in zip(asked, case.replies, strict=True)
        ]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return case, asked, file

    return make


@pytest.fixture(scope="session")
def checkpoint(tiny_tokenizer, tmp_path_factory):
    """The directory of a tiny model whose answers differ."""
    return write_model(tmp_path_factory.mktemp("model"), tiny_tokenizer)


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """A file of own questions, their pictures beside it."""
    return write_questions(tmp_path_factory.mktemp("own"))
