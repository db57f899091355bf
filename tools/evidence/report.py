"""The results of `tools.evidence.convert` as a page and as JSON."""

from __future__ import annotations

import json
from pathlib import Path


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB"


def speed_table(results: dict) -> list[str]:
    lines = [
        "| direction | bytes | seconds | rate | copy + fsync | of copy | peak resident |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("from-hf", "to-hf"):
        r = results[name]
        lines.append(
            f"| {name} | {gigabytes(r['bytes'])} | {r['seconds']:.1f} | {r['rate'] / 1e6:.0f} MB/s "
            f"| {r['copy seconds']:.1f} s, {r['copy rate'] / 1e6:.0f} MB/s | {r['of copy']:.0%} "
            f"| {gigabytes(r['peak'])} |"
        )
    return lines


def dry_table(results: dict) -> list[str]:
    lines = [
        "| model | bytes | tensors mapped | seconds | peak resident |",
        "|---|---|---|---|---|",
    ]
    for name, r in results.items():
        if name.startswith("dry run "):
            lines.append(
                f"| {name[8:]} | {gigabytes(r['bytes'])} | {r['tensors']} | {r['seconds']:.1f} "
                f"| {gigabytes(r['peak'])} |"
            )
    return lines


def kill_table(results: dict) -> list[str]:
    lines = [
        "| direction | killed | after the appearance of | times |",
        "|---|---|---|---|",
    ]
    for r in results["kills"]["ways"]:
        way = "as a file appears" if r["way"] == "files" else "at a random moment"
        for phase, times in r["kills"].items():
            lines.append(f"| {r['direction']} | {way} | `{phase}` | {times} |")
        if r["too late"]:
            lines.append(
                f"| {r['direction']} | {way} | (had ended before the kill) | {r['too late']} |"
            )
    return lines


def page(results: dict, bounds: dict) -> str:
    m, kills = results["machine"], results["kills"]
    versions = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
    count = sum(sum(r["kills"].values()) for r in kills["ways"])
    commands = [results[n]["command"] for n in results if "command" in (results[n] or {})]
    lines = [
        "# The converter at full size",
        "",
        f"Made by `make evidence` on {m['date']} at commit {m['commit']}. {m['processor']}, "
        f"{gigabytes(m['memory'])} of memory. Python {m['python']}, {versions}.",
        "",
        f"Bounds: at most {gigabytes(bounds['peak'])} resident, and at least "
        f"{bounds['of copy']:.0%} of the speed of copy + fsync of the same bytes in the same run. "
        "Neither the copy nor the conversion finds its source in memory. A share above 100 % means "
        "that reading and writing overlap, which the copy's do not.",
        "",
        f"## {results['source']['model']}, there and back",
        "",
        "A synthetic checkpoint with the right names, shapes and dtype (bfloat16).",
        "",
        *speed_table(results),
        "",
        f"All {results['comparison']['tensors']} tensors came back bit for bit, config.json and "
        "the tokenizer too.",
        "",
        "## Dry runs of the largest models",
        "",
        "Every tensor is mapped, none is left over in either direction. The files are sparse.",
        "",
        *dry_table(results),
        "",
        "## Killed and run again",
        "",
        f"{count} conversions of {gigabytes(kills['bytes'])} (the real towers, a small language "
        "model) were killed by SIGKILL and run again. Every file was the same as without the kill, "
        "byte for byte. Undisturbed they take "
        + " and ".join(
            f"{r['seconds']} s ({r['direction']})" for r in kills["ways"] if r["way"] == "random"
        )
        + ".",
        "",
        *kill_table(results),
        "",
        "## A real pretrained decoder",
        "",
        "SmolLM2-135M-Instruct from its GGUF file through `convert from-hf`, in float32, beside "
        "transformers on the same weights.",
        "",
        "```",
        *results["real decoder"]["output"],
        "```",
        "",
        "## Commands",
        "",
        "```",
        *commands,
        "```",
    ]
    return "\n".join(lines) + "\n"


def write(directory: Path, results: dict, bounds: dict) -> None:
    """Writes convert.md and convert.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "convert.json").write_text(json.dumps(results, indent=2) + "\n")
    (directory / "convert.md").write_text(page(results, bounds))
