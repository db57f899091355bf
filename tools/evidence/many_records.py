"""A data set of many tiny records: checked, built, packed, trained on, killed and resumed.

    python -m tools.evidence.many_records --workdir DIR [--records 100000] [--json FILE]

Prints seconds and peak memory (of all processes together, shared pages counted once) of each
command; the last line is JSON. Fails if the whole takes more than the bounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mgm_jax.text import train_tokenizer
from mgm_jax.text.sentencepiece_tokenizer import SentencePieceTokenizer

BOUNDS = {"seconds": 300, "peak": 4 * 10**9}
STEPS, KILLED_AT, VOCABULARY = 20, 10, 384
WORDS = "red green blue one two three cat dog house tree big small near far left right".split()

CONFIG = """
from ml_collections import ConfigDict

from mgm_jax.configs import common


def get_config():
    c = common.train_config()
    c.steps = {steps}
    c.model = dict(
        image=dict(lr_size=8, hr_size=32, aspect="pad"),
        clip=dict(
            image_size=8, patch_size=4, width=16, layers=2, heads=2, mlp_dim=32, norm_eps=1e-5,
            act="quick_gelu", select_layer=-2,
        ),
        convnext=dict(widths=(8, 16), depths=(1, 1), patch_size=4, kernel_size=3, norm_eps=1e-6),
        llm=dict(
            vocab_size={vocabulary}, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=64,
            act="silu", norm_eps=1e-5, rope_theta=1e4, tied_embeddings=False,
            zero_centred_norm=False, embed_scale=None, experts=None,
        ),
        mining_eps=1e-5,
        projector="mlp2x_gelu",
    )
    c.tokenizer = "{root}/tokenizer"
    c.dtype = c.frozen_dtype = "float32"
    c.data.sources.main.path = "{root}/built"
    c.data.template = "v1"
    c.data.length = 512
    c.data.batch = 16
    c.data.group_rows = 4
    c.data.workers = 2
    c.checkpoint.every = {killed_at}
    return c
"""


def make(root: Path, records: int) -> None:
    """LLaVA JSON with nine pictures of 32 px for ten records, and a tokenizer of its text."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    found = []
    for i in tqdm(range(records), desc="records", unit="record"):
        turns = []
        for t in range(1 + i % 3):
            words = rng.choice(WORDS, 4 + i % 9).tolist()
            place = "<image>\n" if t == 0 and i % 10 else ""
            turns += [
                {"from": "human", "value": f"{place}{' '.join(words[:3])} {i}?"},
                {"from": "gpt", "value": " ".join(words[3:])},
            ]
        record = {"id": f"r{i}", "conversations": turns}
        if i % 10:
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            name = f"{i % 100:02d}/{i}.jpg"
            (root / "images" / name).parent.mkdir(exist_ok=True)
            picture = Image.fromarray(pixels).resize((32, 24), Image.Resampling.NEAREST)
            picture.save(buffer := io.BytesIO(), "JPEG")
            (root / "images" / name).write_bytes(buffer.getvalue())
            record["image"] = name
        found.append(record)
    (root / "data.json").write_text(json.dumps(found))
    texts = [turn["value"] for record in found[:2000] for turn in record["conversations"]]
    train_tokenizer(texts, root / "tokenizer.model", VOCABULARY)
    tokenizer = SentencePieceTokenizer.from_file(root / "tokenizer.model", legacy=False)
    tokenizer.save(root / "tokenizer")
    values = dict(root=root, steps=STEPS, killed_at=KILLED_AT, vocabulary=VOCABULARY)
    (root / "config.py").write_text(textwrap.dedent(CONFIG).format(**values))


@dataclasses.dataclass(frozen=True)
class Cost:
    command: str
    seconds: float
    peak: int  # bytes


def processes(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from processes(int(child))


def resident(pid: int) -> int:
    """Bytes that a process and its descendants hold; pages that they share count once."""
    total = 0
    for process in processes(pid):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
    return total


def run(command: list[str], log: Path, stop: Callable[[], bool] | None = None) -> Cost:
    """Runs a command to its end, or kills it as soon as `stop()`. RuntimeError if it fails."""
    begin, peak, killed = time.monotonic(), 0, False
    with open(log, "wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        while child.poll() is None:
            peak = max(peak, resident(child.pid))
            if stop and not killed and stop():
                child.send_signal(signal.SIGKILL)
                killed = True
            time.sleep(0.2)
    if child.returncode != (-signal.SIGKILL if killed else 0):
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    shown = " ".join(command[1:]).replace(f"{log.parent}/", "")
    return Cost(shown, round(time.monotonic() - begin, 1), peak)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="made anew")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the last line there too")
    args = parser.parse_args(argv)
    root = args.workdir.absolute()
    shutil.rmtree(root, ignore_errors=True)
    make(root, args.records)

    data = [sys.executable, "-m", "mgm_jax.cli", "data"]
    source = [f"{root}/data.json", "--images", f"{root}/images"]
    text = ["--tokenizer", f"{root}/tokenizer", "--template", "v1", "--length", "512"]
    text += ["--visual-tokens", "4"]
    train = [sys.executable, "-m", "mgm_jax.train"]
    train += ["--config", f"{root}/config.py", "--workdir", f"{root}/run"]
    saved = root / "run" / "state" / str(KILLED_AT)
    costs = []
    for command, stop in (
        ([*data, "check", *source, *text], None),
        ([*data, "build", *source, "--out", f"{root}/built"], None),
        (train, saved.is_dir),
        (train, None),
    ):
        costs.append(run(command, root / "log.txt", stop))
        cost = costs[-1]
        print(f"{cost.seconds:7.1f} s  {cost.peak / 1e9:5.2f} GB  {cost.command}")
    resumed = f"resumed at step {KILLED_AT}" in (root / "log.txt").read_text()
    rows = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    total = {
        "records": args.records,
        "seconds": round(sum(cost.seconds for cost in costs), 1),
        "peak": max(cost.peak for cost in costs),
        "resumed": resumed,
        "steps": rows[-1]["step"],
        "token_fill": rows[-1]["token_fill"],
        "slot_fill": rows[-1]["slot_fill"],
        "commands": [dataclasses.asdict(cost) for cost in costs],
    }
    line = json.dumps(total)
    if args.json:
        args.json.write_text(line + "\n")
    print(line)
    missed = [f"{k}: {total[k]}, at most {most}" for k, most in BOUNDS.items() if total[k] > most]
    if not resumed or total["steps"] != STEPS:
        missed.append("the run was not resumed to its end")
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
