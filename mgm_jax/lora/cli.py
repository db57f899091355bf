"""`mgm-jax lora merge | import | export | compare`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="lora_command", required=True, metavar="COMMAND")
    merge = commands.add_parser(
        "merge",
        help="an adapter and its base -> a model without adapters",
        description="Writes the model that computes what base and adapter compute together.",
    )
    take = commands.add_parser(
        "import",
        help="an adapter of PEFT or LLaVA's trainer -> one of ours, which knows its base",
        description="Checks the adapter against the base, and writes it with a record of the base. "
        "(Without, mgm-jax chat DIR --base MODEL reads it too.)",
    )
    export = commands.add_parser(
        "export",
        help="an adapter -> PEFT's two files",
        description="Writes adapter_config.json and adapter_model.safetensors for PEFT.",
    )
    compare = commands.add_parser(
        "compare",
        help="base and adapter on held-out records: answers, loss, a page",
        description="Asks both the first question of each record. The last line printed is JSON.",
    )
    for command, what in (
        (merge, "adapter"),
        (take, "PEFT's"),
        (export, "adapter"),
        (compare, "adapter"),
    ):
        command.add_argument("adapter", help=f"the {what} directory")
        if command is not compare:
            command.add_argument("out", help="the directory to write")
        command.add_argument("--base", metavar="DIR", help="default: what the adapter says")
    export.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    export.add_argument(
        "--llm",
        action="store_true",
        help="for the language model alone, as transformers has it: leaves out what was trained "
        "beside it",
    )
    compare.add_argument("--data", required=True, metavar="FILE", help="held-out records")
    compare.add_argument("--images", metavar="DIR", help="where their pictures lie")
    compare.add_argument("--records", type=int, default=1000, help="at most; default: %(default)s")
    compare.add_argument("--length", type=int, default=2048, help="their tokens; default: 2048")
    compare.add_argument("--max-new-tokens", type=int, default=64, help="default: %(default)s")
    compare.add_argument("--html", metavar="FILE", help="write a page there")
    compare.add_argument("--shown", type=int, default=40, help="records on it; default: 40")
    compare.add_argument("--json", metavar="FILE", help="write the last line to FILE too")
    export.add_argument("--base-name", help="base_model_name_or_path; default: the base's path")


def main(args: argparse.Namespace) -> None:
    """`args` as `add_arguments` made them."""
    work = {"merge": merge, "import": take, "export": export, "compare": compare}
    work[args.lora_command](args)


def _written(args: argparse.Namespace) -> None:
    print(f"{args.out}: written", file=sys.stderr)


def merge(args: argparse.Namespace) -> None:
    from mgm_jax.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from mgm_jax.lora import adapters, directory
    from mgm_jax.quantize.params import dequantize
    from mgm_jax.tree import flatten, unflatten

    base = load_checkpoint(directory.find_base(args.adapter, args.base))
    lora, params = directory.read(args.adapter, base.config)
    plain = dequantize(base.params) if base.quantization else base.params
    flat, own = flatten(plain), flatten(params)
    own = {n: a.astype(flat[n].dtype) if n in flat else a for n, a in own.items()}
    whole = adapters.merge(unflatten(flat | own), lora)
    cfg, template = directory.as_trained(args.adapter, base.config, base.template)
    provenance = directory.read_record(args.adapter)["provenance"] or base.provenance
    save_checkpoint(args.out, Checkpoint(cfg, whole, base.tokenizer, template, provenance))
    _written(args)


def take(args: argparse.Namespace) -> None:
    from mgm_jax.checkpoint import content_hash, place, whole_model
    from mgm_jax.lora import directory

    path = directory.find_base(args.adapter, args.base)
    cfg = whole_model(path)
    lora, params = directory.read(args.adapter, cfg)
    base = directory.Base(str(place(path)), content_hash(path))
    directory.write(args.out, params, cfg, lora, base, None, {"source": "peft"})
    _written(args)


def export(args: argparse.Namespace) -> None:
    from mgm_jax.checkpoint import whole_model
    from mgm_jax.lora import directory, peft
    from mgm_jax.tree import flatten, unflatten

    path = directory.find_base(args.adapter, args.base)
    cfg = whole_model(path)
    lora, params = directory.read(args.adapter, cfg)
    if args.llm:
        params = unflatten({n: a for n, a in flatten(params).items() if n.startswith("llm/")})
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    peft.save(out, params, cfg, lora, args.base_name or str(path), dtype=args.dtype)
    _written(args)


def compare(args: argparse.Namespace) -> None:
    from mgm_jax.data.sources import open_source
    from mgm_jax.lora import compare as pair

    source = open_source(args.data, args.images)
    records = [source[i] for i in range(min(len(source), args.records))]
    options = {"base": args.base, "length": args.length, "max_new_tokens": args.max_new_tokens}
    found, answers = pair.compare(args.adapter, records, **options)
    if args.html:
        Path(args.html).write_text(pair.page(found, answers[: args.shown]), encoding="utf-8")
    line = json.dumps(found)
    if args.json:
        Path(args.json).write_text(line + "\n")
    print(line)
