"""`mgm-jax convert ...`, the same as `python -m tools.convert_weights ...`."""

from __future__ import annotations

import argparse
import re

DTYPES = ("float32", "float16", "bfloat16")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(text: str) -> int:
    """`4GB`, `500MB`, `1.5G` or plain bytes -> bytes (decimal units, as disks have them)."""
    match = re.fullmatch(r"([\d.]+)\s*([KMGT]?)B?", text.strip().upper())
    try:
        value = float(match[1]) * UNITS[match[2]]
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 4GB") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 4GB")
    return int(value)


def tower(text: str) -> tuple[str, str]:
    """`clip=PATH` -> its two parts."""
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `convert`."""
    commands = parser.add_subparsers(dest="conversion", required=True, metavar="WHAT")
    directions = {
        "from-hf": "an original's checkpoint, or base weights (CLIP, ConvNeXt, a language model), "
        "or mm_projector.bin (safetensors or .bin) -> a model directory of ours",
        "to-hf": "a model directory of ours -> what the original loads",
        "from-bv": "a ViT of big_vision (FILE.npz or FILE.npz:subtree) -> a model directory of "
        "ours that holds a vision tower, for a run's init",
        "to-bv": "the vision tower of a model directory of ours -> a .npz file for big_vision",
    }
    for name, text in directions.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--src", required=True, metavar="PATH")
        command.add_argument("--dst", metavar="PATH", help="not needed with --dry-run")
        command.add_argument("--dtype", choices=DTYPES, help="default: each tensor's own")
        command.add_argument("--max-ram", type=size, metavar="SIZE", help="such as 4GB")
        command.add_argument("--dry-run", action="store_true", help="print the mapping, no more")
        if name == "from-hf":
            command.add_argument(
                "--tower",
                type=tower,
                action="append",
                default=[],
                metavar="NAME=PATH",
                help="weights that override the checkpoint's own; NAME: clip, convnext, llm",
            )
            command.add_argument("--template", help="chat template; default: the family's")
        elif name == "from-bv":
            command.add_argument(
                "--image-size", type=int, metavar="N", help="resizes the positions; default: as is"
            )
            command.add_argument(
                "--select-layer",
                type=int,
                default=-1,
                metavar="N",
                help="whose features are used, -2 for the last but one; default: %(default)s",
            )
        elif name == "to-bv":
            command.add_argument(
                "--layout",
                choices=("loop", "scan"),
                default="loop",
                help="an array for each layer, or for all layers; default: %(default)s",
            )
        else:
            command.add_argument(
                "--shard-size", type=size, default=5 * 10**9, metavar="SIZE", help="default: 5GB"
            )
            command.add_argument(
                "--adapter",
                action="store_true",
                help="write mm_projector.bin, what the original's stage 2 begins from",
            )
    text = "whether two models compute the same, module by module"
    command = commands.add_parser(
        "verify",
        help=text,
        description=f"{text}: B (checked) against A (the reference), in float32 on fixed prompts "
        "and pictures. Each is a model directory of ours or of the original. If the checked one is "
        "ours, the summary goes into the provenance in its mgm.json, and the page into its "
        "verify.html. Exit code 1 if they do not agree; the last line printed is JSON.",
    )
    command.add_argument("a", metavar="A", help="the reference")
    command.add_argument("b", metavar="B", nargs="?", help="the checked one; --against: default A")
    command.add_argument(
        "--against", choices=("torch",), help="run A by PyTorch and transformers (extra: test)"
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest difference of features, times their root mean square where that is above 1; "
        "logits may differ by twice that; default: %(default)s",
    )
    command.add_argument("--json", metavar="FILE", help="write the last line to FILE too")
    command.add_argument("--html", metavar="FILE", help="write the page to FILE")
    command = commands.add_parser("inspect", help="the tensors of a file or directory")
    command.add_argument("path", metavar="PATH")


def inspect(path: str) -> list[str]:
    """A line for each tensor (name, shape, dtype, bytes), sorted by name, and one of totals."""
    from mgm_jax.convert.readers import open_source

    source = open_source(path)
    lines, totals = [], {}
    for name in sorted(source):
        info = source[name]
        lines.append(f"{name} {list(info.shape)} {info.dtype} {info.nbytes}")
        count, nbytes = totals.get(info.dtype.name, (0, 0))
        totals[info.dtype.name] = (count + 1, nbytes + info.nbytes)
    of = ", ".join(f"{n} {dtype} {b / 1e6:.3f} MB" for dtype, (n, b) in sorted(totals.items()))
    return [*lines, f"total: {len(lines)} tensors ({of})"]


def main(args: argparse.Namespace) -> None:
    """Runs the parsed command."""
    if args.conversion == "inspect":
        print("\n".join(inspect(args.path)))
        return
    if args.conversion == "verify":
        from mgm_jax.convert import verify

        verify.main(args)
        return
    from mgm_jax.convert import big_vision, checkpoints

    common = {"dtype": args.dtype, "max_ram": args.max_ram, "dry_run": args.dry_run}
    if args.conversion == "from-hf":
        options = {"towers": dict(args.tower), "template": args.template}
        lines = checkpoints.from_hf(args.src, args.dst, **common, **options)
    elif args.conversion == "from-bv":
        options = {"image_size": args.image_size, "select_layer": args.select_layer}
        lines = big_vision.from_bv(args.src, args.dst, **common, **options)
    elif args.conversion == "to-bv":
        lines = big_vision.to_bv(args.src, args.dst, **common, layout=args.layout)
    else:
        options = {"shard_size": args.shard_size, "adapter": args.adapter}
        lines = checkpoints.to_hf(args.src, args.dst, **common, **options)
    if args.dry_run:
        print("\n".join(lines))
    left_out = sum(line.endswith("-> left out") for line in lines)
    tail = f" ({left_out} left out)" if left_out else ""
    print(f"{len(lines) - left_out} tensors{tail}" + ("" if args.dry_run else f" -> {args.dst}"))
