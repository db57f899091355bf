"""Twenty questions of the benchmarks that are answered in words."""

from case_files import COUNT, Case, draw, dump, lines, right


def textvqa(folder):
    names, asked, truth = [f"{i}.jpg" for i in range(COUNT)], [], []
    for i in range(COUNT):
        text = f"What is on sign {i}?\nReference OCR token: SIGN, {i}\nAnswer the question using a "
        text += "single word or phrase."
        asked.append({"question_id": f"{i}", "image": names[i], "text": text, "category": "x"})
        answers = [f"Sign {i}"] * 10
        truth.append({"image_id": f"{i}", "question": f"What is on sign {i}?", "answers": answers})
    return Case(
        lines(folder / "questions.jsonl", asked),
        draw(folder / "images", names),
        dump(folder / "TextVQA_0.5.1_val.json", {"data": truth}),
        [f"sign {i}." if right(i) else "nothing" for i in range(COUNT)],
        {"accuracy": 65.0},
    )


def mmvet(folder):
    names = [f"v{i}.png" for i in range(COUNT)]
    asked = [
        {"question_id": i, "image": names[i], "text": f"What is {i}?", "category": "x"}
        for i in range(COUNT)
    ]
    skills = [["ocr"], ["math", "ocr"], ["rec"]]
    truth = {
        f"v1_{i}": {"question": f"What is {i}?", "answer": f"it {i}", "capability": skills[i % 3]}
        for i in range(COUNT)
    }

    def judge(prompt, **settings):
        said = dict(line.split(": ", 1) for line in prompt.split("\n") if ": " in line)
        return "1.0" if said["Reference"] == said["Answer"] else "0.0"

    return Case(
        lines(folder / "llava-mm-vet.jsonl", asked),
        draw(folder / "images", names),
        dump(folder / "mm-vet.json", truth),
        [f"it {i}" if right(i) else "no idea" for i in range(COUNT)],
        {"total": 65.0},
        judge=judge,
    )


def mathvista(folder):
    kinds = [
        ("multi_choice", "text", ["red", "green"], None, "green", "(B)", "(A) red"),
        ("free_form", "integer", None, None, "7", "7", "8"),
        ("free_form", "float", None, 1, "1.2", "1.20", "1.3"),
        ("free_form", "float", None, 2, "1.25", "1.25", "12.5"),
        ("free_form", "list", None, None, "[1, 2]", "It is [1, 2]", "[2, 1]"),
    ]
    problems, replies = {}, []
    for i in range(COUNT):
        kind, answer_type, choices, precision, answer, good, bad = kinds[i % 5]
        problems[str(i)] = {
            "pid": str(i),
            "question": f"How many, {i}?",
            "image": f"images/{i}.jpg",
            "choices": choices,
            "unit": "cm" if i % 2 else None,
            "precision": precision,
            "answer": answer,
            "question_type": kind,
            "answer_type": answer_type,
            "metadata": {
                "language": "english",
                "source": f"s{i % 2}",
                "category": "general-vqa",
                "task": "figure question answering",
                "context": "table",
                "grade": "daily life",
                "skills": ["arithmetic", "algebra"][: i % 2 + 1],
            },
        }
        replies.append(good if right(i) else bad)
    file = dump(folder / "testmini.json", problems)
    draw(folder, [f"images/{i}.jpg" for i in range(COUNT)])
    return Case(file, folder, file, replies, {"accuracy": 65.0})


def gqa(folder):
    names = [f"{i}.jpg" for i in range(COUNT)]
    asked = [
        {"question_id": str(i), "image": names[i], "text": f"What is {i}?"} for i in range(COUNT)
    ]
    truth = {
        str(i): {"answer": f"item {i}", "types": {"structural": "query"}} for i in range(COUNT)
    }
    return Case(
        lines(folder / "llava_gqa_testdev_balanced.jsonl", asked),
        draw(folder / "images", names),
        dump(folder / "testdev_balanced_questions.json", truth),
        [f"Item {i}." if right(i) else "nothing" for i in range(COUNT)],
        {"accuracy": 65.0},
    )


def vizwiz(folder):
    names = [f"VizWiz_val_{i:08d}.jpg" for i in range(COUNT)]
    truth = [
        {
            "image": names[i],
            "question": f"What is this, {i}?",
            "answers": [{"answer": f"box {i}", "answer_confidence": "yes"}] * 10,
            "answer_type": "other" if i % 2 else "number",
            "answerable": 1,
        }
        for i in range(COUNT)
    ]
    file = dump(folder / "val.json", truth)
    replies = [f"Box {i}" if right(i) else "unanswerable" for i in range(COUNT)]
    return Case(file, draw(folder / "val", names), file, replies, {"accuracy": 65.0})


def llavabench(folder):
    """Eight points for the reference; eight for a right answer, four for a wrong one."""
    names, kinds = [f"{i:03d}.jpg" for i in range(COUNT)], ["conv", "detail", "complex"]
    asked = [
        {"question_id": i, "image": names[i], "text": f"Tell of {i}.", "category": kinds[i % 3]}
        for i in range(COUNT)
    ]
    rule = {"role": "Assistant", "prompt": "Two numbers, please."}
    dump(folder / "rule.json", {f"llava_bench_{kind}": rule for kind in kinds})
    lines(folder / "context.jsonl", [{"image": n, "caption": ["One.", f"Two {n}."]} for n in names])
    references = [
        {"question_id": i, "text": f"Reference {i}", "answer_id": i} for i in range(COUNT)
    ]
    lines(folder / "answers_gpt4.jsonl", references)

    def judge(prompt, **settings):
        assert prompt.startswith("[Context]\nOne.\nTwo ") and settings["system"]
        return "8 8\nFine." if "[Assistant 2]\ngood" in prompt else "8 4\nPoor."

    return Case(
        lines(folder / "questions.jsonl", asked),
        draw(folder / "images", names),
        folder,
        ["good" if right(i) else "bad" for i in range(COUNT)],
        {"ratio": 100 * (13 * 8 + 7 * 4) / (20 * 8)},
        judge=judge,
    )


def coloninst(folder):
    """Eight to classify (all right), six to name (five right), six to find (none right)."""
    records, replies = [], []
    for i in range(COUNT):
        box = f"{{<{i}><{2 * i}><{i + 9}><{2 * i + 9}>}}"
        if i < 8:
            question, answer, bad = "Categorize the object.", "polyp", "ulcer"
        elif i < 14:
            question, answer, bad = f"What category does {box} belong to?", "Adenoma", "polyp"
        else:
            question, answer, bad = "Where is polyp located?", box, "{<200><200><209><209>}"
        turns = [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ]
        records.append({"id": f"Set/Val/{i}.png", "image": str(i), "conversations": turns})
        replies.append(f"{answer.lower()}<|endoftext|>" if right(i) else bad)
    return Case(
        dump(folder / "ColonINST-val.json", records),
        draw(folder / "Positive-images", [r["id"] for r in records]),
        None,
        replies,
        {"CLS": 100.0, "REG": 100 * 5 / 6, "REC": 0.0},
    )


def jsonl(folder):
    """Four questions of each metric."""
    rows, replies = [], []
    for i in range(COUNT):
        metric = ["exact", "relaxed", "anls", "contains", "choice"][i % 5]
        row = {"question_id": f"q{i}", "image": f"{i}.png", "text": f"What, {i}?", "metric": metric}
        row |= {"category": f"c{i % 2}"}
        row |= {
            "exact": {"answer": "Paris"},
            "relaxed": {"answers": ["100", "about a hundred"]},
            "anls": {"answer": "letters"},
            "contains": {"answer": "oak"},
            "choice": {"answer": "elk", "options": ["cow", "elk"]},
        }[metric]
        rows.append(row)
        good = {"exact": "paris.", "relaxed": "104", "anls": "LETTERS", "contains": "An oak."}
        bad = {"exact": "in Paris", "relaxed": "106", "anls": "numbers", "contains": "An elm."}
        good["choice"], bad["choice"] = "B", "A. cow"
        replies.append((good if right(i) else bad)[metric])
    file = lines(folder / "mine.jsonl", rows)
    images = draw(folder / "images", [f"{i}.png" for i in range(COUNT)])
    return Case(file, images, file, replies, {"accuracy": 65.0})
