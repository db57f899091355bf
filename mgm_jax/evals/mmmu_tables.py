"""MMMU's subjects and domains, and the tables that the original makes of them."""

from __future__ import annotations

from mgm_jax.evals.files import Record, field

SUBJECTS = """
Accounting Agriculture Architecture_and_Engineering Art Art_Theory Basic_Medical_Science Biology
Chemistry Clinical_Medicine Computer_Science Design Diagnostics_and_Laboratory_Medicine Economics
Electronics Energy_and_Power Finance Geography History Literature Manage Marketing Materials Math
Mechanical_Engineering Music Pharmacy Physics Psychology Public_Health Sociology
""".split()
DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine "
    "Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics "
    "Energy_and_Power Materials Mechanical_Engineering",
}


def subject_of(record: Record) -> str:
    """The subject in an id such as validation_Art_Theory_12."""
    subject = "_".join(field(record, "id").split("_")[1:-1])
    if subject not in SUBJECTS:
        raise ValueError(
            f"{record.where}: id {record['id']!r} is of no MMMU subject, expected "
            "<split>_<Subject>_<number>, such as validation_Art_Theory_12"
        )
    return subject


def overview(verdicts: list[dict]) -> dict[str, dict]:
    """{Overall-<domain>, <subject>, Overall: {num, acc}}; acc is a fraction of three digits."""
    counts = {s: [0, 0] for s in SUBJECTS}
    for v in verdicts:
        counts[v["category"]][0] += 1
        counts[v["category"]][1] += int(v["score"])
    present = {s: (n, right / n) for s, (n, right) in counts.items() if n}
    table = {}
    for domain, subjects in DOMAINS.items():
        inside = {s: present[s] for s in subjects.split() if s in present}
        table[f"Overall-{domain}"] = _pooled(inside)
        table |= {s: {"num": n, "acc": round(acc, 3)} for s, (n, acc) in inside.items()}
    return table | {"Overall": _pooled(present)}


def _pooled(subjects: dict[str, tuple[int, float]]) -> dict:
    """Accuracy over questions, summed subject by subject as the original does (rounding apart)."""
    total, number = 0, 0
    for n, acc in subjects.values():
        total += acc * n
        number += n
    return {"num": number, "acc": round(total / number, 3) if number else 0}


def printed_table(table: dict[str, dict]) -> str:
    """The overview as an org-mode table, decimal points one below the other."""
    cells = [f"{v['acc']:g}" for v in table.values()]
    digits = max(len(c.partition(".")[2]) for c in cells)
    cells = [c + " " * (digits + 1 - len("".join(c.partition(".")[1:]))) for c in cells]
    rows = [(name, str(v["num"]), acc) for (name, v), acc in zip(table.items(), cells, strict=True)]
    head = ("Subject", "Data Num", "Acc")
    least = (len(head[0]), len(head[1]) + 2, len(head[2]) + 2)
    width = [max(least[i], *(len(row[i]) for row in rows)) for i in range(3)]
    shown = [
        f"| {name:<{width[0]}} | {num:>{width[1]}} | {acc:>{width[2]}} |"
        for name, num, acc in [head, *rows]
    ]
    rule = "+".join("-" * (w + 2) for w in width)
    return "\n".join([shown[0], f"|{rule}|", *shown[1:], ""])
