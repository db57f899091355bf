"""Twenty questions of the benchmarks that offer options, or yes and no."""

import base64
import csv

from case_files import COUNT, Case, draw, dump, lines, picture, right


def mmbench(folder):
    columns = "index question hint A B C D answer category image source l2-category comment split"
    file = folder / "mmbench_dev.tsv"
    folder.mkdir(parents=True)
    with file.open("w", newline="") as out:
        rows = csv.writer(out, "excel-tab")
        rows.writerow(columns.split())
        for i in range(COUNT):
            options = ["cat", "dog", "cow" if i % 2 else "nan", "" if i % 3 else "elk"]
            cells = [i * 7, f"Which animal is {i}?", "Look." if i % 4 else ""]
            cells += [*options, "AB"[i % 2], f"c{i % 2}", base64.b64encode(picture(i)).decode()]
            rows.writerow([*cells, "src", f"l{i % 3}", "", "dev"])
    replies = ["AB"[i % 2] if right(i) else "BA"[i % 2] for i in range(COUNT)]
    return Case(file, None, file, replies, {"accuracy": 65.0})


def mme(folder):
    """Five tasks of two pictures with two questions each."""
    tasks = "existence count numerical_calculation text_translation code_reasoning".split()
    asked, replies, names = [], [], []
    release = folder / "MME_Benchmark_release_version"
    for i in range(COUNT):
        task, name = tasks[i // 4], f"{i // 2:04d}"
        inside = f"{task}/images" if task == "count" else task
        names.append(f"{inside}/{name}.png")
        question = f"Is it {i}? Please answer yes or no."
        truth = "Yes" if i % 2 == 0 else "No"
        place = release / task / ("questions_answers_YN" if task == "count" else "") / f"{name}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a") as out:
            out.write(f"{question}\t{truth}\n")
        text = f"{question}\nAnswer the question using a single word or phrase."
        row = {"question_id": f"{task}/{name}.png", "image": names[-1], "text": text}
        asked.append(row | {"category": task})
        replies.append(truth if right(i) else {"Yes": "No", "No": "Yes"}[truth])
    # 4, 4, 4, 1 and 0 of 4 right: 200 + 200; 200 + (25 + 0) + 0.
    return Case(
        lines(folder / "llava_mme.jsonl", asked),
        draw(release, names),
        release,
        replies,
        {"perception": 400.0, "cognition": 225.0},
    )


def mmmu(folder):
    import pyarrow
    from pyarrow import parquet

    replies = []
    for subject, start in (("Art", 0), ("Math", 10)):
        rows = []
        for i in range(start, start + 10):
            is_open = i % 5 == 4
            row = {"id": f"validation_{subject}_{i}", "question": f"What is <image 1>, {i}?"}
            row["options"] = "[]" if is_open else "['cat', \"bird's\", 'dog']"
            row["answer"] = f"{i}.5" if is_open else "B"
            row["question_type"] = "open" if is_open else "multiple-choice"
            rows.append(row | {"image_1": {"bytes": picture(i), "path": f"{i}.png"}})
            good, bad = (f"The answer is {i}.50.", "none") if is_open else ("(B) bird's", "A")
            replies.append(good if right(i) else bad)
        (folder / subject).mkdir(parents=True)
        file = folder / subject / "validation-00000-of-00001.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return Case(folder, None, None, replies, {"accuracy": 65.0}, {"subjects": "Art Math"})


def pope(folder):
    """7 adversarial, 7 popular, 6 random; every other answer is yes."""
    names = [f"{i}.jpg" for i in range(COUNT)]
    categories = ["adversarial"] * 7 + ["popular"] * 7 + ["random"] * 6
    asked, labels, replies = [], {}, []
    for i, category in enumerate(categories):
        row = {"question_id": i, "image": names[i], "text": f"Is there a dog in {i}?"}
        asked.append(row | {"category": category})
        label = "no" if i % 2 else "yes"
        labels.setdefault(category, []).append({"question_id": i, "label": label})
        replies.append("No" if (label == "no") == right(i) else "Yes")
    for category, rows in labels.items():
        lines(folder / "coco" / f"coco_pope_{category}.json", rows)
    # All right; TP 3, FP 1, TN 3; all wrong.
    return Case(
        lines(folder / "llava_pope_test.jsonl", asked),
        draw(folder / "images", names),
        folder / "coco",
        replies,
        {"f1": 100 * (1 + 6 / 7 + 0) / 3, "accuracy": 100 * (1 + 6 / 7 + 0) / 3},
    )


def scienceqa(folder):
    """Every fourth question has no picture: of the other 15, 10 are right."""
    asked, problems, replies = [], {}, []
    for i in range(COUNT):
        row = {"id": str(i), "conversations": [{"from": "human", "value": f"<image>\nWhich, {i}?"}]}
        asked.append(row | ({} if i % 4 == 3 else {"image": f"{i}/image.png"}))
        problems[str(i)] = {"choices": ["a", "b", "c"], "answer": i % 3}
        replies.append("ABC"[(i + (not right(i))) % 3])
    dump(folder / "problems.json", problems)
    dump(folder / "pid_splits.json", {"test": list(problems), "val": []})
    return Case(
        dump(folder / "llava_test_CQM-A.json", asked),
        draw(folder / "images", [f"{i}/image.png" for i in range(COUNT)]),
        folder,
        replies,
        {"accuracy": 65.0, "img_accuracy": 100 * 10 / 15},
    )


def seed(folder):
    """Every fifth question is about a video: 2 of 4 are right, and 11 of the 16 others."""
    names = [f"{i}.jpg" for i in range(COUNT)]
    asked, truth, replies = [], [], []
    for i in range(COUNT):
        asked.append({"question_id": i, "image": names[i], "text": f"Which, {i}?"})
        video = i % 5 == 4
        row = {
            "question_id": str(i),
            "question_type_id": 10 if video else 1,
            "answer": "ABCD"[i % 4],
        }
        truth.append(row | {"data_type": "video" if video else "image"})
        replies.append("ABCD"[(i + (not right(i))) % 4])
    types = {"Scene Understanding": 1, "Action Recognition": 10}
    return Case(
        lines(folder / "llava-seed-bench.jsonl", asked),
        draw(folder / "images", names),
        dump(folder / "SEED-Bench.json", {"question_type": types, "questions": truth}),
        replies,
        {"accuracy": 65.0, "image_accuracy": 100 * 11 / 16},
    )


def qbench(folder):
    truth = [
        {
            "img_path": f"{i // 2}.png",
            "question": f"How sharp is {i}?",
            "candidates": ["Sharp", "Blurry", "Dark"][: 2 + i % 2],
            "correct_ans": ["Sharp", "Blurry"][i % 2],
            "type": i % 3,
            "concern": i % 4,
        }
        for i in range(COUNT)
    ]
    file = dump(folder / "llvisionqa_dev.json", truth)
    good, bad = ("A. Sharp", "Blurry."), ("Blurry", "(A)")
    replies = [(good if right(i) else bad)[i % 2] for i in range(COUNT)]
    images = draw(folder / "images", [f"{i}.png" for i in range(10)])
    return Case(file, images, file, replies, {"accuracy": 65.0})
