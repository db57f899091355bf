"""Every benchmark on its twenty questions: pictures, lines, and a score worked out by hand."""

import io
import json
import subprocess
import sys

import pytest
from eval_cases import COUNT
from PIL import Image

from mgm_jax.evals import BENCHMARKS, get
from mgm_jax.evals.files import Record, read_records


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_model_right_on_13_of_20_scores_as_by_hand(name, make_case):
    benchmark = get(name)
    case, asked, file = make_case(name)
    assert len(asked) == COUNT == len(read_records(file))
    for question in asked:
        for image in question.images:
            opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
            assert opened.size == (32, 24)
    assert sum(bool(q.images) for q in asked) == (15 if name == "scienceqa" else 20)
    assert not any("<image>" in q.prompt for q in asked)
    scores = benchmark.run(file, case.annotations, judge=case.judge, **case.options)
    summary = benchmark.summary(scores.verdicts)
    assert summary == pytest.approx(case.summary, rel=1e-12)
    assert len(scores.verdicts) == COUNT
    assert all({"question_id", "score", "parsed", "answer"} <= v.keys() for v in scores.verdicts)
    assert all(0 <= v["score"] <= 1 for v in scores.verdicts)
    json.dumps([scores.result, scores.verdicts])
    for numbers in benchmark.expected.values():  # comparable with what was published
        assert numbers.keys() <= summary.keys() and numbers.keys() <= benchmark.tolerance.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_keys_tell_lines_apart(name, make_case):
    benchmark = get(name)
    _, asked, _ = make_case(name)
    written = [Record(benchmark.line(q, "x", "stub"), "file") for q in asked]
    assert len({benchmark.key(line) for line in written}) == COUNT


@pytest.mark.parametrize("name", [n for n in BENCHMARKS if n not in ("pope", "mmmu")])
def test_the_order_of_lines_does_not_matter(name, make_case):
    """Where the original goes by order, POPE and the random letters of MMMU, so do we."""
    benchmark = get(name)
    case, _, file = make_case(name)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[::-1]))
    scores = benchmark.run(file, case.annotations, judge=case.judge, **case.options)
    assert benchmark.summary(scores.verdicts) == pytest.approx(case.summary, rel=1e-12)


def test_benchmarks_import_no_jax():
    code = (
        "import sys, mgm_jax.evals as e, mgm_jax.evals.cli\n"
        "for name in e.BENCHMARKS: e.get(name)\n"
        "assert not {'jax', 'flax', 'pandas', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_published_numbers_are_all_there():
    numbers = {n: len(get(n).expected) for n in BENCHMARKS}
    assert {n: c for n, c in numbers.items() if c} == {
        "textvqa": 11,
        "mmbench": 10,
        "mme": 11,
        "mmvet": 10,
        "mmmu": 21,
        "mathvista": 9,
        "coloninst": 4,
    }
    assert get("mme").expected["MGM-34B-HD"] == {"perception": 1659, "cognition": 482}
