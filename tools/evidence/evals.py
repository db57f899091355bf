"""The demo model on 2,000 questions: processes, kills and batches that change nothing.

    python -m tools.evidence.evals --demo workdir/demo --workdir DIR --json FILE

The demo's held-out questions are asked as own JSON lines: by one process; by two that are joined by
`jax.distributed`, with four simulated devices each; and by runs that are killed (SIGKILL) at random
moments, `--kills` times, and go on, as one process or two by turns. All have to end with the same
predictions, scores and verdicts; a difference is allowed only from a step whose two best logits are
closer than 1e-4, and is listed. Then the same questions are asked one by one and in batches, by
turns in one process: of the demo model, and of one with a larger decoder. Fails where that does not
hold, or batches of the latter are less than four times as fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from launch.local_multiprocess import started

QUESTIONS, BATCH, NEW = 2000, 64, 24
ALONE = 64  # questions that are asked one by one
TOLERANCE = 1e-4
CONFIG = """
from mgm_jax.configs import common


def get_config(arg=None):
    c = common.eval_config({{"demo": common.benchmark("jsonl", {file!r}, {images!r}, {file!r})}})
    c.dtype, c.batch, c.threads = "float32", {batch}, 2
    c.benchmarks.demo.generation.max_new_tokens = {new}
    return c
"""


def write_questions(demo: Path, workdir: Path) -> Path:
    """The config of 2,000 of the demo's held-out questions."""
    rows = []
    for split in ("test", "new_photos"):
        for r in json.loads((demo / "data" / f"{split}.json").read_text()):
            text = r["conversations"][0]["value"].removeprefix("<image>\n")
            row = {"question_id": r["id"], "image": r["image"], "text": text}
            rows.append(row | {"answer": r["answer"], "category": f"{split}_{r['kind']}"})
    if len(rows) < QUESTIONS:
        raise SystemExit(f"{demo}: {len(rows)} held-out questions, expected {QUESTIONS}")
    file = workdir / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:QUESTIONS]))
    config = workdir / "config.py"
    images = str(demo / "data")
    config.write_text(CONFIG.format(file=str(file), images=images, batch=BATCH, new=NEW))
    return config


def answer(command: list[str], out: Path, processes: int, seconds: float | None) -> float | None:
    """Runs an evaluation, and kills it after `seconds`. How long it ran; None if it was killed."""
    out.mkdir(parents=True, exist_ok=True)
    logs = [out / f"process-{i}.log" for i in range(processes)]
    begun = time.monotonic()
    devices = 1 if processes == 1 else 4
    with started([*command, f"--workdir={out}"], logs, devices, grace=0) as running:
        while any(p.poll() is None for p in running):
            if seconds is not None and time.monotonic() - begun > seconds:
                for p in running:
                    p.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
    codes = [p.wait() for p in running]
    if -signal.SIGKILL in codes:
        return None
    if any(codes):
        raise RuntimeError(f"{codes}: {logs[0].read_text()[-4000:]}")
    return time.monotonic() - begun


def answered(out: Path) -> int:
    """Whole lines of answers."""
    files = (out / "demo" / "answers").glob("*.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files)


def compare(one: Path, other: Path) -> dict:
    """Whether two evaluations left the same, and which answers differ."""
    files = ("predictions.jsonl", "scores.json", "verdicts.json")
    same = {
        name: (one / "demo" / name).read_bytes() == (other / "demo" / name).read_bytes()
        for name in files
    }
    pairs = zip(*(items(d) for d in (one, other)), strict=True)
    differ = [
        {"question": a["question_id"], "texts": [a["text"], b["text"]]}
        | {"margins": [a["margin"], b["margin"]]}
        for a, b in pairs
        if any(a[k] != b[k] for k in a if k != "margin")
    ]
    ok = all(min(d["margins"]) < TOLERANCE for d in differ) and (bool(differ) or all(same.values()))
    return {"same": same, "differences": differ, "ok": ok}


def items(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "demo" / "items.jsonl").read_text().splitlines()]


def soak(command, out: Path, whole: Path, seconds: dict[int, float], kills: int, seed: int) -> dict:
    """Kills at random moments until `kills` have hit, then lets it end."""
    rng, log = random.Random(seed), []
    while len(log) < kills:
        processes, before = len(log) % 2 + 1, answered(out)
        if answer(command, out, processes, rng.uniform(0.3, 0.9) * seconds[processes]) is None:
            log.append({"processes": processes, "from": before, "to": answered(out)})
            print(json.dumps(log[-1]), file=sys.stderr, flush=True)
        else:  # it came to its end before: begin anew
            shutil.rmtree(out)
    answer(command, out, 1, None)
    return {"kills": log} | compare(whole, out)


def ratio(config, subject, batch: int, rounds: int) -> dict:
    """Seconds of the same questions one by one and in batches, by turns; compiled before."""
    from mgm_jax.evals.runner import Runner, checked_tasks

    seconds: dict[int, list[float]] = {1: [], batch: []}
    for turn in range(rounds + 1):
        for config.batch, taken in seconds.items():
            with tempfile.TemporaryDirectory() as out:
                tasks, begun = checked_tasks(config), time.perf_counter()
                Runner(subject, config)(tasks, out)
                if turn:  # the first compiles
                    taken.append(round(time.perf_counter() - begun, 3))
    alone, together = (statistics.median(s) for s in seconds.values())
    return {
        "questions": config.limit,
        "tokens": config.benchmarks.demo.generation.max_new_tokens,
        "batch": batch,
        "seconds": seconds,
        "ratio": round(alone / together, 2),
    }


def ratios(file: Path, demo: Path, rounds: int) -> dict:
    """`ratio` of the demo model, whose towers take most of the time on a CPU, and of a decoder of
    43 million parameters with a vocabulary of 32,000, random weights and small towers."""
    from mgm_jax import sharding
    from mgm_jax.evaluate import read_subject
    from mgm_jax.settings import read_config

    config = read_config(str(file), key="benchmarks")
    config.limit = ALONE
    mesh = sharding.make_mesh({})
    subject = read_subject(config, mesh, demo)
    found = {"demo model": ratio(config, subject, BATCH, rounds)}
    config.limit, config.benchmarks.demo.generation.max_new_tokens = ALONE // 2, 64
    found["decoder"] = ratio(config, with_decoder(subject), ALONE // 2, rounds)
    return found


def with_decoder(subject):
    """The demo model's pictures and tokenizer, a larger decoder, random weights."""
    import flax.linen as nn
    import jax

    from mgm_jax.program import abstract_model

    small = subject.model.config
    llm = dict(vocab_size=32000, dim=512, layers=8, heads=8, kv_heads=4, head_dim=64, mlp_dim=1376)
    clip = dict(width=16, layers=2, heads=2, mlp_dim=32)
    cfg = dataclasses.replace(
        small,
        image=dataclasses.replace(small.image, hr_size=48),
        clip=dataclasses.replace(small.clip, **clip),
        convnext=dataclasses.replace(small.convnext, widths=(8, 16), depths=(1, 1)),
        llm=dataclasses.replace(small.llm, **llm),
    )
    module, batch, _, _ = abstract_model(cfg, dtype="float32")
    init = jax.jit(lambda key: nn.unbox(module.init(key, batch)["params"]))
    params, known = init(jax.random.key(0)), subject.model.tokenizer.vocab_size
    head = params["llm"]["lm_head"]
    head["kernel"] = head["kernel"].at[:, known:].set(0)  # ids that the tokenizer has
    model = dataclasses.replace(subject.model, module=module, params=params)
    return dataclasses.replace(subject, model=model, content="random", checkpoint="random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("workdir/demo"))
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    demo, workdir = args.demo.absolute(), args.workdir.absolute()
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    os.environ["JAX_PLATFORMS"] = "cpu"
    config = write_questions(demo, workdir)
    command = [sys.executable, "-m", "mgm_jax.evaluate"]
    command += [f"--config={config}", f"--checkpoint={demo}"]
    whole, seconds = workdir / "whole1", {}
    for processes in (1, 2):
        for name in ("warm", "whole"):  # the first fills the compilation cache
            seconds[processes] = answer(command, workdir / f"{name}{processes}", processes, None)
    found = json.loads((whole / "results.json").read_text())
    result = {
        "questions": found["questions"],
        "distinct answers": len({i["text"] for i in items(whole)}),
        "scores": found["benchmarks"]["demo"],
        "seconds": {str(n): round(s, 1) for n, s in seconds.items()},
        "two processes of four devices": compare(whole, workdir / "whole2"),
        "killed": soak(command, workdir / "killed", whole, seconds, args.kills, args.seed),
        "batched": ratios(config, demo, args.rounds),
    }
    result["ok"] = (
        result["two processes of four devices"]["ok"]
        and result["killed"]["ok"]
        and result["batched"]["decoder"]["ratio"] >= 4
    )
    print(page(result))
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(not result["ok"])


def page(r: dict) -> str:
    """The result in words."""
    accuracy = r["scores"]["category"]
    lines = [
        f"{r['questions']} questions, {r['distinct answers']} distinct answers",
        ", ".join(f"{name} {value:.4f}" for name, value in accuracy.items()),
        f"seconds, with start and loading: {r['seconds']} (by processes)",
    ]
    for name in ("two processes of four devices", "killed"):
        found = r[name]
        same = "the same files" if all(found["same"].values()) else f"{found['same']}"
        lines.append(f"{name}: {same}, {len(found['differences'])} answers differ")
        lines += [f"  {difference}" for difference in found["differences"]]
    lines += [
        f"  killed with {k['to']} answers, begun with {k['from']}, {k['processes']} process(es)"
        for k in r["killed"]["kills"]
    ]
    lines += [
        f"{name}: batches of {b['batch']} are {b['ratio']} times as fast as one by one "
        f"({b['questions']} questions, up to {b['tokens']} tokens)"
        for name, b in r["batched"].items()
    ]
    return "\n".join([*lines, "ok" if r["ok"] else "FAILED"])


if __name__ == "__main__":
    main()
