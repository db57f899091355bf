"""Pictures that stand for yours in docs/finetune_lora.md: the demo's, asked what it has not learnt.

`python -m mgm_jax.demo.own_pictures DEMO OUT` reads DEMO/data and writes OUT/train.json (100
pictures) and OUT/held_out.json (the others of the same split), LLaVA JSON whose pictures lie in
DEMO/data.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

SPLIT = "new_photos"  # photographs that the demo was not trained on
QUESTION = "What is on the card? Answer with colour and digit."


def records(scenes: list[dict]) -> list[dict]:
    """One question a scene, of DEMO/data/scenes.json."""
    return [
        {
            "id": f"own-{i:04d}",
            "image": scene["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": f"{scene['colour']} {scene['digit']}"},
            ],
        }
        for i, scene in enumerate(scenes)
    ]


def write(demo: Path, out: Path, train: int = 100) -> dict[str, int]:
    """Writes the two files; returns their numbers of records. ValueError where DEMO has too few."""
    scenes = json.loads((demo / "data" / "scenes.json").read_text())
    own = records([s for s in scenes if s["split"] == SPLIT])
    if len(own) <= train:
        raise ValueError(f"{demo}/data has {len(own)} pictures of {SPLIT}, expected > {train}")
    out.mkdir(parents=True, exist_ok=True)
    parts = {"train": own[:train], "held_out": own[train:]}
    for name, part in parts.items():
        (out / f"{name}.json").write_text(json.dumps(part, indent=1) + "\n")
    return {name: len(part) for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=100, help="pictures; default: 100")
    args = parser.parse_args()
    try:
        print(write(args.demo, args.out, args.train))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
