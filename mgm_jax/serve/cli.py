"""`mgm-jax serve DIR`: an OpenAI-compatible server, and a web page with --web."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys

KEY = "MGM_JAX_API_KEY"
GRACE = 60  # seconds that answers have to end in when the server is stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `mgm-jax serve`."""
    add = parser.add_argument
    parser.description = (
        "POST /v1/chat/completions and /v1/images/generations, GET /v1/models, /health and "
        f"/metrics. An API key is taken from {KEY}. Answers /health with 503 until all shapes are "
        "compiled. Ctrl-C ends it when its answers are finished."
    )
    add("directory", help="a model directory, ours or the original's")
    add("--host", default="127.0.0.1", help="address to listen at; default: this machine alone")
    add("--port", type=int, default=8000, help="0: any free one; default: %(default)s")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a Host that requests may name besides the loopback's; without it, a server at "
        "another address takes any",
    )
    add("--model-name", default="mgm", help="that requests give; default: %(default)s")
    add("--web", action="store_true", help="also a web page, at / (extra: web)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--slots", type=int, default=8, help="answers at a time; %(default)s")
    engine.add_argument(
        "--max-length", type=int, default=2048, help="prompt and answer, tokens; %(default)s"
    )
    engine.add_argument("--queue", type=int, default=64, help="requests that wait; %(default)s")
    engine.add_argument("--mesh", default="", metavar="AXIS=N,...", help="as in training configs")
    engine.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    engine.add_argument(
        "--bucket",
        type=int,
        action="append",
        metavar="TOKENS",
        help="a prompt length to compile; repeatable; default: 32, 64, ... up to --max-length",
    )
    limits = parser.add_argument_group("limits of a request")
    limits.add_argument("--max-tokens", type=int, default=1024, help="of an answer; %(default)s")
    limits.add_argument("--max-pictures", type=int, default=16, help="%(default)s")
    limits.add_argument("--max-pixels", type=int, default=50_000_000, help="%(default)s")
    limits.add_argument("--max-body-mb", type=int, default=64, help="%(default)s")
    limits.add_argument("--max-picture-mb", type=int, default=20, help="%(default)s")
    more = parser.add_argument_group("pictures")
    more.add_argument("--allow-urls", action="store_true", help="fetch public http(s) URLs")
    more.add_argument("--ocr", action="store_true", help="requests may ask for OCR hints")
    more.add_argument("--ocr-tokens", type=int, default=256, help="of a hint; %(default)s")
    more.add_argument(
        "--gen-backend", metavar="NAME", help="paints: diffusers, openai_http or placeholder"
    )
    more.add_argument(
        "--gen-option", action="append", default=[], metavar="KEY=VALUE", help="of the back end"
    )


def parse_mesh(text: str) -> dict[str, int]:
    """ "fsdp=4,tensor=2" -> sizes of axes; ValueError."""
    sizes = {}
    for item in filter(None, text.split(",")):
        name, sign, value = item.partition("=")
        if not sign or not value.lstrip("-").isdecimal():
            raise ValueError(f"--mesh: found {item!r}, expected AXIS=N")
        sizes[name] = int(value)
    return sizes


def main(args: argparse.Namespace) -> None:
    """Serves until it is stopped. ValueError for options that do not fit."""
    try:
        import uvicorn

        from mgm_jax.serve.app import create_app
        from mgm_jax.serve.guard import LOOPBACK
        from mgm_jax.serve.media import Limits
        from mgm_jax.serve.service import Service
    except ImportError as error:
        raise ValueError(f"serving needs {error.name}: pip install 'mgm-jax[serve]'") from error

    from PIL import Image

    from mgm_jax import ocr, sharding
    from mgm_jax.api import load
    from mgm_jax.compile_cache import keep_compiled
    from mgm_jax.generate.engine import BUCKETS, Engine
    from mgm_jax.imagegen import make_backend

    limits = Limits(
        body_bytes=args.max_body_mb * 2**20,
        picture_bytes=args.max_picture_mb * 2**20,
        pixels=args.max_pixels,
        pictures=args.max_pictures,
        tokens=args.max_tokens,
    )
    backend = make_backend(args.gen_backend, args.gen_option) if args.gen_backend else None
    if args.gen_option and backend is None:
        raise ValueError("--gen-option is given without --gen-backend")
    if long := [tokens for tokens in args.bucket or () if not 0 < tokens <= args.max_length]:
        raise ValueError(f"--bucket is {long[0]}, expected 1 to --max-length {args.max_length}")
    if args.ocr_tokens < 0:
        raise ValueError(f"--ocr-tokens is {args.ocr_tokens}, expected >= 0")
    if args.ocr:
        ocr.read_text(Image.new("RGB", (64, 64)))  # loads its models, or says what is missing
    api_key, local = os.environ.get(KEY, "").strip(), args.host in LOOPBACK
    if not api_key and not local:
        print(f"warning: {args.host} is reached without an API key; set {KEY}", file=sys.stderr)
    keep_compiled()
    mesh = sharding.make_mesh(parse_mesh(args.mesh)) if args.mesh else None
    engine = Engine(
        load(args.directory, dtype=args.dtype, mesh=mesh),
        slots=args.slots,
        max_length=args.max_length,
        mesh=mesh,
        prefill_buckets=args.bucket or BUCKETS,
        queue=args.queue,
    )
    service = Service(
        engine,
        name=args.model_name,
        limits=limits,
        backend=backend,
        remote_urls=args.allow_urls,
        ocr=args.ocr,
        ocr_tokens=args.ocr_tokens,
        api_key=api_key,
    )
    hosts = tuple(h.lower() for h in (*LOOPBACK, *args.allow_host))
    app = create_app(service, hosts=hosts if local or args.allow_host else None, web=args.web)
    how = dict(log_level="warning", server_header=False, timeout_graceful_shutdown=GRACE)
    server = uvicorn.Server(uvicorn.Config(app, **how))
    failed = []

    def fail() -> None:
        failed.append(True)
        server.should_exit = True

    service.on_failure = fail
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.create_server((args.host, args.port), family=family)
    at = f"[{args.host}]" if ":" in args.host else args.host
    print(f"serving {args.model_name} at http://{at}:{listener.getsockname()[1]}/v1", flush=True)
    for name in (signal.SIGINT, signal.SIGTERM):  # uvicorn ends in order, and then raises it again
        signal.signal(name, lambda *_: None)
    server.run(sockets=[listener])
    if failed:
        raise OSError("the engine cannot warm up; the log above says why")
