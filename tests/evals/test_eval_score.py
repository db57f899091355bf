"""`mgm-jax eval score`: files of the original's kinds, results under its keys, submissions."""

import json
import random

import pytest
from case_files import dump, lines
from eval_cases import COUNT, RIGHT

from mgm_jax import cli
from mgm_jax.evals import BENCHMARKS, get
from mgm_jax.evals.files import read_records

JUDGED = ("mmvet", "llavabench")


@pytest.fixture
def score(capsys):
    """(arguments) -> (last line as JSON, what was printed before it, stderr)."""

    def run(*arguments):
        cli.main(["eval", "score", *map(str, arguments)])
        out, err = capsys.readouterr()
        *printed, last = out.splitlines(keepends=True)
        return json.loads(last), "".join(printed), err

    return run


@pytest.fixture
def score_case(score, make_case):
    """(benchmark, more arguments) -> as `score`, of the stub model's file."""

    def run(name, *more):
        case, _, file = make_case(name)
        given = ["--annotations", case.annotations] if case.annotations else []
        return score(name, "--predictions", file, *given, *more)

    return run


@pytest.mark.parametrize("name", [n for n in BENCHMARKS if n not in JUDGED])
def test_the_command_prints_scores_and_writes_them(name, score_case, tmp_path):
    files = [tmp_path / "out" / f for f in ("result.json", "verdicts.json")]
    result, printed, _ = score_case(name, "--json", files[0], "--verdicts", files[1])
    assert json.loads(files[0].read_text()) == result
    assert len(json.loads(files[1].read_text())) == COUNT
    assert printed == result["printed"] and result["benchmark"] == name
    assert result["summary"]


def test_keys_of_the_original(score_case):
    """What its scorers write, or print, for our twenty questions."""
    found = score_case("mmmu")[0]
    assert found["Overall"] == {"num": 20, "acc": 0.65}
    assert found["Art"] == {"num": 10, "acc": 1.0} and found["Math"] == {"num": 10, "acc": 0.3}
    assert found["Overall-Business"] == {"num": 0, "acc": 0}
    assert found["subjects"]["Math"] == {"acc": 0.3, "num_example": 10}
    assert found["metric_dict"] == {"acc": 0.65, "num_example": 20}
    assert found["validation_Art_0"] == "Correct" and found["validation_Math_19"] == "Wrong"

    found = score_case("mathvista")[0]
    assert found["average"] == {"accuracy": "65.0", "correct": 13, "total": 20}
    assert found["answer_type"]["integer"] == {"accuracy": "75.00", "correct": 3, "total": 4}
    assert list(found["grade"]) == ["daily life"] and found["skills"]["algebra"]["total"] == 10
    accuracies = [float(v["accuracy"]) for v in found["answer_type"].values()]
    assert accuracies == sorted(accuracies, reverse=True)

    found, printed, _ = score_case("scienceqa")
    assert (found["acc"], found["correct"], found["count"]) == (65.0, 13, 20)
    assert found["results"]["1"] == 1 and found["outputs"]["1"] == "B"
    assert printed == "Total: 20, Correct: 13, Accuracy: 65.00%, IMG-Accuracy: 66.67%\n"

    found = score_case("pope")[0]
    assert found["popular"] == {
        **{"TP": 3, "FP": 1, "TN": 3, "FN": 0, "accuracy": 6 / 7, "precision": 0.75},
        **{"recall": 1.0, "f1": 2 * 0.75 / 1.75, "yes_ratio": 4 / 7},
    }
    assert found["random"]["f1"] == 0.0  # where the original divides by zero

    found, printed, _ = score_case("seed")
    assert found["Total accuracy"] == 65.0 and found["image accuracy"] == 68.75
    assert found["Scene Understanding"] == 68.75 and found["Action Recognition"] == 50.0
    assert printed.endswith("accuracy: 65.00%\nimage accuracy: 68.75%\nvideo accuracy: 50.00%\n")

    found = score_case("coloninst")[0]["eval_result"]
    assert found["CLS"] == 1.0 and found["REG"] == 5 / 6
    assert found["REC"] == {"avg_iou": 0.0, "avg_precision": 0.0, "avg_recall": 0.0}

    found = score_case("mme")[0]
    assert found["tasks"]["text_translation"] == {
        **{"acc": 0.25, "acc_plus": 0.0, "score": 25.0, "other_num": 0},
    }
    assert (found["perception"], found["cognition"]) == (400.0, 225.0)

    found = score_case("textvqa")[0]
    assert found["samples"] == 20 and found["accuracy"] == found["stvqa_accuracy"] == 0.65


def test_mmmu_as_letters_and_as_folders(score, tmp_path):
    """The inputs of main_eval_only.py and main_parse_and_eval.py."""
    truth = {
        "validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"},
        "validation_Art_2": {"question_type": "multiple-choice", "ground_truth": ["A", "C"]},
        "validation_Physics_1": {"question_type": "short-answer", "ground_truth": ["1,000", "k"]},
    }
    flat = {"validation_Art_1": "B", "validation_Art_2": "C", "validation_Physics_1": "so 10"}
    files = dump(tmp_path / "flat.json", flat), dump(tmp_path / "truth.json", truth)
    found, printed, _ = score("mmmu", "--predictions", files[0], "--annotations", files[1])
    assert found["Overall"] == {"num": 3, "acc": 0.667} and "validation_Art_1" not in found
    assert printed.splitlines()[-1].split(" | ")[1:] == ["         3", "0.667 |"]

    texts = {"A": "one", "B": "two"}
    sample = {"question_type": "multiple-choice", "answer": "A", "index2ans": texts}
    sample |= {"all_choices": ["A", "B"]}
    replies = ["A", "?", "?", "?"]
    for subject in ("Physics", "Art"):
        rows = [
            sample | {"id": f"validation_{subject}_{i}", "response": reply}
            for i, reply in enumerate(replies)
        ]
        dump(tmp_path / "model" / subject / "output.json", rows)
    found, _, err = score("mmmu", "--predictions", tmp_path / "model")
    random.seed(42)  # as the original does; subjects go by its own order, Art first
    drawn = [random.choice(["A", "B"]) for _ in range(6)]
    assert found["subjects"]["Art"]["acc"] == (1 + drawn[:3].count("A")) / 4
    assert found["subjects"]["Physics"]["acc"] == (1 + drawn[3:].count("A")) / 4
    assert "6 replies could not be read" in err


def test_mmmu_keeps_what_a_line_was_parsed_as(score, tmp_path):
    """The input of eval.py."""
    rows = [
        {"id": "validation_Art_1", "question_type": "multiple-choice", "answer": "B"},
        {"id": "validation_Math_1", "question_type": "open", "answer": "3"},
    ]
    rows[0] |= {"response": "A", "parsed_pred": "B", "index2ans": {"A": "x", "B": "y"}}
    rows[1] |= {"response": "4", "parsed_pred": ["4", 3.0]}
    found, _, _ = score("mmmu", "--predictions", lines(tmp_path / "a.jsonl", rows))
    assert found["metric_dict"] == {"acc": 1.0, "num_example": 2}


def test_mathvista_reads_an_extracted_file_and_the_gain(score, make_case, tmp_path):
    case, _, file = make_case("mathvista")
    problems = {line["pid"]: line | {"extraction": "(B)"} for line in read_records(file)}
    whole = dump(tmp_path / "output.json", problems)
    guesses = dump(tmp_path / "random.json", score("mathvista", "--predictions", file)[0])
    found, _, _ = score("mathvista", "--predictions", whole, "--set", f"random_file={guesses}")
    assert found["average"]["correct"] == 4  # the choices; "(B)" is no number
    assert found["average"]["acc_gain"] == -45.0
    assert found["grade"]["daily life"]["acc_gain"] == "-45.0"


def test_mathvista_asks_its_judge(make_case):
    case, _, file = make_case("mathvista")
    prompts = []

    def judge(prompt, **settings):
        prompts.append(prompt)
        return "[1, 2]"

    scores = get("mathvista").run(file, case.annotations, judge=judge)
    assert scores.result["found_by"] == {"rule": 12, "judge": 8, "fallback": 0}
    assert prompts[0].startswith("Please read the following example.")
    assert prompts[0].endswith("\n\n(B)\n\nExtracted answer: ")


def test_mathvista_without_a_judge_says_how_it_read(score_case):
    found, _, err = score_case("mathvista")
    assert found["found_by"] == {"rule": 12, "judge": 0, "fallback": 8}
    assert "8 answers were extracted by rules of our own" in err


def test_mmvet_grades_by_capability_and_names_its_prompt(make_case, tmp_path):
    case, _, file = make_case("mmvet")
    scores = get("mmvet").run(file, case.annotations, judge=case.judge)
    assert scores.result["judge_prompt"] == "mgm_jax" and "not the number" in scores.notes[-1]
    # Of 14 questions for ocr 9 are right, of 7 for math 4, of 6 for rec 4.
    assert scores.result["capability"] == {
        "ocr": pytest.approx(900 / 14),
        "math": pytest.approx(400 / 7),
        "rec": pytest.approx(400 / 6),
    }
    own = tmp_path / "prompt.txt"
    own.write_text("{question}|{answer}|{prediction}|")
    asked = []

    def judge(prompt, **settings):
        asked.append(prompt)
        return "no grade"

    scores = get("mmvet").run(file, case.annotations, judge=judge, prompt=str(own))
    assert asked[0] == "What is 0?|it 0|it 0|" and scores.result["judge_prompt"] == str(own)
    assert scores.result["total"] == 0 and scores.notes == [
        "20 of the judge's replies hold no grade and count as 0"
    ]


def test_llavabench_summary_of_reviews(score, tmp_path):
    rows = [
        {"question_id": 1, "category": "llava_bench_conv", "tuple": [8, 4]},
        {"question_id": 2, "category": "llava_bench_conv", "tuple": [10, 8.5]},
        {"question_id": 3, "category": "llava_bench_detail", "tuple": [-1, -1]},
    ]
    found, printed, err = score("llavabench", "--predictions", lines(tmp_path / "r.jsonl", rows))
    assert found["llava_bench_conv"] == [69.4, 90.0, 62.5]
    assert found["all"] == [67.6, 56.7, 38.3] and printed.startswith("all 67.6 56.7 38.3\n")
    assert "1 reviews give no two scores" in err


def test_mmbench_in_every_order(score, make_case, tmp_path):
    """A model that looks at the options is right in all rounds; one that says A is not."""
    case, _, _ = make_case("mmbench")
    benchmark = get("mmbench")
    asked = list(benchmark.questions(case.questions, None, benchmark.chosen({"all_rounds": True})))
    assert len(asked) == 10 * 2 + 7 * 3 + 3 * 4  # C is empty in every other row
    for seeing, accuracy in ((True, 1.0), (False, 0.0)):
        rows = []
        for question in asked:
            right = ["cat", "dog"][question.id // 7 % 2]
            letter = "ABCD"[question.meta["options"].index(right)] if seeing else "A"
            rows.append(benchmark.line(question, letter, "stub"))
        file = lines(tmp_path / "rounds.jsonl", rows)
        found, _, _ = score("mmbench", "--predictions", file, "--annotations", case.annotations)
        assert found["accuracy"] == accuracy and found["circular"]
    second = asked[1]
    assert second.meta["round_id"] == 1 and second.meta["option_char"] == ["B", "A"]
    assert second.prompt == (
        "Which animal is 0?\nA. dog\nB. cat\nAnswer with the option's letter from the given "
        "choices directly."
    )
    third = next(q for q in asked if q.id == 7)
    assert third.prompt.startswith("Look.\nWhich animal is 1?\nA. cat\nB. dog\nC. cow\n")


def test_folders_of_predictions_are_scored_file_by_file(score, make_case, tmp_path):
    case, _, file = make_case("textvqa")
    folder = tmp_path / "answers"
    for name, keep in (("b", 20), ("a", 10)):
        rows = read_records(file)[:keep]
        lines(folder / f"{name}.jsonl", rows)
    truth = case.annotations
    found, printed, err = score("textvqa", "--predictions", folder, "--annotations", truth)
    assert [f"{n} {r['accuracy']}" for n, r in found.items()] == ["a.jsonl 1.0", "b.jsonl 0.65"]
    assert printed.startswith("a\nSamples: 10\nAccuracy: 100.00%\nb\nSamples: 20\n")
    assert "note: 10 of 20 questions have no prediction" in err


SUBMISSIONS = {
    "mmvet": lambda d: d["v1_0"] == "it 0" and len(d) == COUNT,
    "mmmu": lambda d: d["validation_Art_0"] == "B" and isinstance(d["validation_Math_14"], str),
    "gqa": lambda d: d[0] == {"questionId": "0", "prediction": "item 0"},
    "vizwiz": lambda d: d[0] == {"image": "VizWiz_val_00000000.jpg", "answer": "box 0"},
    "scienceqa": lambda d: (len(d["correct"]), len(d["incorrect"])) == (RIGHT, COUNT - RIGHT),
    "mathvista": lambda d: d["0"]["true_false"] is True and d["0"]["prediction"] == "green",
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_submissions(name, score_case, tmp_path):
    file = tmp_path / "out" / "submission.json"
    assert score_case(name, "--submission", file)[0]["predictions"] == COUNT
    assert SUBMISSIONS[name](json.loads(file.read_text()))


def test_mmbench_sheet(score_case, tmp_path):
    import openpyxl

    file = tmp_path / "up" / "model.xlsx"
    score_case("mmbench", "--submission", file)
    rows = list(openpyxl.load_workbook(file).active.iter_rows(values_only=True))
    head = ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[0] == head and len(rows) == COUNT + 1
    assert rows[2] == (7, "Which animal is 1?", "cat", "dog", "cow", None, "B", "B", "dev")


def test_seed_and_mme_submissions(score_case, score, tmp_path):
    score_case("seed", "--submission", tmp_path / "seed.jsonl")
    first = (tmp_path / "seed.jsonl").read_text().splitlines()[0]
    assert json.loads(first) == {"question_id": "0", "prediction": "A"}
    score_case("mme", "--submission", tmp_path / "mme")
    first = (tmp_path / "mme" / "count.txt").read_text().splitlines()[0]
    assert first == "0002.txt\tIs it 4? Please answer yes or no.\tYes\tYes"
    found, _, _ = score("mme", "--predictions", tmp_path / "mme")  # as calculation.py reads it
    assert (found["perception"], found["cognition"]) == (400.0, 225.0)
