"""What is wrong with a file is one line that names file, line and field, found and expected."""

import json
import re

import pytest
from case_files import dump, lines

from mgm_jax import cli
from mgm_jax.evals import get
from mgm_jax.evals.files import read_records
from mgm_jax.evals.mmmu import prompt


@pytest.fixture
def fails(capsys):
    """(arguments) -> the one line of a command that must fail."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(["eval", "score", *map(str, arguments)])
        message = str(caught.value.code)
        assert message.startswith("error: ") and "\n" not in message, message
        return message.removeprefix("error: ")

    return run


@pytest.fixture
def fails_case(fails, make_case):
    """(benchmark, change of the prediction lines) -> (case, file, message)."""

    def run(name, change, *more):
        case, _, file = make_case(name)
        rows = [dict(r) for r in read_records(file)]
        lines(file, change(rows) or rows)
        given = ["--annotations", case.annotations] if case.annotations else []
        return case, file, fails(name, "--predictions", file, *given, *more)

    return run


ALL = (
    "gqa",
    "vizwiz",
    "qbench",
    "coloninst",
    "jsonl",
    "seed",
    "mmbench",
    "mme",
    "scienceqa",
    "pope",
)


@pytest.mark.parametrize("name", [*ALL, "textvqa", "mmmu", "mathvista"])
def test_a_prediction_that_stands_there_twice(name, fails_case):
    _, file, message = fails_case(name, lambda rows: [*rows, rows[4]])
    assert message.startswith(f"{file}:21: ")
    assert re.search(rf"(stands in|is answered in) {re.escape(str(file))}:5 already", message)


@pytest.mark.parametrize("name", ["gqa", "vizwiz", "qbench", "jsonl", "mmbench", "mme"])
def test_questions_without_a_prediction(name, fails_case):
    case, file, message = fails_case(name, lambda rows: rows[:-3])
    assert message.startswith(
        f"{file}: no prediction for 3 of 20 questions of {case.annotations}: "
    )


def test_pope_wants_as_many_answers_as_labels(fails_case):
    case, file, message = fails_case("pope", lambda rows: rows[1:])
    labels = case.annotations / "coco_pope_adversarial.json"
    assert message == f"{labels}: 7 labels, but 6 predictions of category 'adversarial' in {file}"


@pytest.mark.parametrize("name", ["gqa", "seed", "mmbench", "scienceqa", "pope", "jsonl"])
def test_a_prediction_without_a_question(name, fails_case):
    def change(rows):
        rows[2]["question_id"] = 999 if isinstance(rows[2]["question_id"], int) else "999"

    _, file, message = fails_case(name, change)
    assert message.startswith(f"{file}:3: no question for ") and "999" in message


@pytest.mark.parametrize("name", ["textvqa", "mme"])
def test_a_prediction_whose_prompt_fits_no_question(name, fails_case):
    def change(rows):
        rows[2]["prompt"] = "What is this?\nShort."

    _, file, message = fails_case(name, change)
    assert message.startswith(f"{file}:3: no question ") and "hat is this?" in message


@pytest.mark.parametrize("name", ALL[:-1])
def test_a_field_that_is_missing(name, fails_case):
    reply = {"qbench": "response", "coloninst": "conversations"}.get(name, "text")

    def change(rows):
        del rows[6][reply]

    _, file, message = fails_case(name, change)
    assert message.startswith(f"{file}:7: no field '{reply}' (") and "found '" in message


def test_a_field_of_another_type(fails_case):
    def change(rows):
        rows[0]["text"] = 3

    _, file, message = fails_case("gqa", change)
    assert message == f"{file}:1: field 'text' is 3 (int), expected str"


def test_files_that_are_no_predictions(fails, tmp_path):
    truth = dump(tmp_path / "truth.json", {"0": {"answer": "x"}})

    def message(text):
        file = tmp_path / "p.jsonl"
        file.write_text(text)
        return fails("gqa", "--predictions", file, "--annotations", truth).replace(str(file), "F")

    assert message('{"question_id": "0"}\n{"question_id": ').startswith("F:2: not JSON: ")
    assert message("[3]") == "F, record 0: found 3 (int), expected a JSON object"
    assert message("\n\n") == "F: found no prediction"
    missing = fails("gqa", "--predictions", tmp_path / "none", "--annotations", truth)
    assert missing == f"{tmp_path / 'none'}: this file does not exist"


def test_arguments(fails, make_case, tmp_path):
    case, _, file = make_case("gqa")
    given = ("--predictions", file)
    assert "unknown benchmark 'gaq', known: textvqa, " in fails("gaq", *given)
    assert fails("gqa", *given) == "gqa needs --annotations: testdev_balanced_questions.json"
    truth = ("--annotations", case.annotations)
    assert fails("gqa", *given, *truth, "--set", "a") == "--set a: expected NAME=VALUE"
    message = fails("gqa", *given, *truth, "--set", "split=x")
    assert message == "gqa has no option 'split', known: none"
    message = fails("textvqa", *given, *truth, "--set", "m4c_period_count=many")
    assert message == "textvqa: option m4c_period_count is 'many', expected int"
    message = fails("textvqa", *given, *truth, "--set", "m4c_period_count=7")
    assert message == "m4c_period_count is 7, expected one of [32, None]"
    message = fails("qbench", *given, *truth, "--submission", tmp_path / "x")
    assert message == "qbench has no server to submit to: leave out --submission"
    (tmp_path / "empty").mkdir()
    message = fails("textvqa", "--predictions", tmp_path / "empty", *truth)
    assert message == f"{tmp_path / 'empty'}: found no *.jsonl"


@pytest.mark.parametrize("name", ["mmvet", "llavabench"])
def test_what_needs_a_judge_says_so(name, fails_case):
    assert "no judge is given" in fails_case(name, lambda rows: rows)[2]


def test_metadata_that_a_table_needs(fails_case):
    def change(rows):
        del rows[1]["metadata"]["grade"]

    _, file, message = fails_case("mathvista", change)
    assert message == f"{file}:2: field 'metadata' has no 'grade'"


def test_annotations_that_do_not_fit(make_case, fails):
    def message(name, write, annotations=None):
        case, _, file = make_case(name)
        where = annotations(case) if annotations else case.annotations
        write(where)
        text = fails(name, "--predictions", file, "--annotations", case.annotations)
        return text.replace(str(where), "F")

    def spoil(change):
        def write(path):
            data = json.loads(path.read_text())
            change(data)
            path.write_text(json.dumps(data))

        return write

    assert message("textvqa", spoil(lambda d: d["data"][3]["answers"].pop())) == (
        "F, data[3]: 9 answers, expected 10"
    )
    assert message("textvqa", spoil(lambda d: d.pop("data"))) == (
        "F: no list 'data', expected TextVQA_0.5.1_val.json"
    )
    assert message("seed", spoil(lambda d: d["question_type"].popitem())).startswith(
        "F, questions[4]: question_type_id 10, known: [1]"
    )
    assert message(
        "scienceqa", spoil(lambda d: d.pop("5")), lambda case: case.annotations / "problems.json"
    ).startswith("F: no problem ['5'] of split 'test'")
    assert message("qbench", spoil(lambda d: d[1].update(correct_ans="Fine"))) == (
        "F, record 1: correct_ans 'Fine' (str) is no candidate"
    )


def test_mmbench_columns(make_case, fails):
    case, _, file = make_case("mmbench")
    text = case.annotations.read_text()

    def message(changed):
        case.annotations.write_text(changed)
        given = ("--predictions", file, "--annotations", case.annotations)
        return fails("mmbench", *given).replace(str(case.annotations), "F")

    assert message(text.replace("question", "Question", 1)).startswith(
        "F: no column 'question', found"
    )
    assert (
        message(text.replace("\n7\t", "\nseven\t")) == "F, row 2: column 'index' is 'seven' (str)"
    )
    assert message(text.replace("\n7\t", "\n0\t")) == "F, row 2: 0 stands in F, row 1 already"
    assert "column 'answer' has empty cells" in message(
        text.replace("\tanswer\t", "\tanswers\t", 1)
    )
    assert message(text + "1\t2\n") == "F, row 21: expected 14 cells"


@pytest.mark.parametrize(
    "name", ["textvqa", "mme", "scienceqa", "mathvista", "qbench", "coloninst"]
)
def test_pictures_that_are_missing(name, make_case):
    case, asked, _ = make_case(name)
    benchmark = get(name)
    gone = asked[5].images[0]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"picture {re.escape(str(gone))} does not exist"):
        list(benchmark.questions(case.questions, case.images, benchmark.chosen(case.options)))


def test_mmmu_data_that_is_no_good(make_case, fails_case):
    def hide(rows):
        for row in rows:
            row["answer"] = "?"

    _, file, message = fails_case("mmmu", hide)
    assert message.startswith(f"{file}: the answers of this split are hidden")
    sample = {"id": "test_Art_1", "options": "[cat", "question": "?", "question_type": "open"}
    with pytest.raises(
        ValueError, match=r"test_Art_1: options is '\[cat' \(str\), expected a list"
    ):
        prompt(sample)
    benchmark = get("mmmu")
    with pytest.raises(FileNotFoundError, match="Accounting: found no test-"):
        list(benchmark.questions(file.parent, None, benchmark.chosen({"split": "test"})))


def test_coloninst_counts_the_samples_of_a_split(fails_case):
    message = fails_case("coloninst", lambda rows: rows, "--set", "split=val")[2]
    assert message.endswith(": 8 CLS samples, expected 8929 of split val")


def test_pope_finds_no_or_two_question_files(make_case, fails):
    case, _, file = make_case("pope")
    given = ("pope", "--predictions", file, "--annotations", case.annotations)
    other = case.questions.with_name("other.jsonl")
    other.write_text(case.questions.read_text())
    assert fails(*given).startswith(
        f"{case.questions.parent}: found question files llava_pope_test"
    )
    other.unlink()
    case.questions.unlink()
    assert fails(*given).startswith(f"{case.annotations}: found no question file")
