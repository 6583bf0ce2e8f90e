"""`spl serve`: the daemon in the foreground."""

from argparse import Namespace
from pathlib import Path
from typing import Final

from ..daemon import ServeOptions, run
from .command import Command, Parser, Shell


def _options(parser: Parser) -> None:
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="port to listen on (default 9100)")
    parser.add_argument("--public-url", metavar="URL", help="where peers reach this daemon; stands in its manifest")
    parser.add_argument(
        "--insecure-localhost", action="store_true", help="take requests from this machine without tokens"
    )
    parser.add_argument("--log-format", choices=("logfmt", "json"), help="form of the log lines (default logfmt)")


def _serve(args: Namespace, shell: Shell) -> int:
    return run(
        ServeOptions(
            home=Path(shell.home),
            host=args.host,
            port=args.port,
            public_url=args.public_url,
            insecure_localhost=args.insecure_localhost,
            log_format=args.log_format,
        )
    )


TREE: Final = (
    Command(
        "serve",
        "The daemon holds the records of one home, serves its API and syncs with paired instances.\n"
        "It runs in the foreground, one to a home, and ends cleanly on SIGTERM or Ctrl-C.",
        "spl serve --host 127.0.0.1 --port 9100",
        _serve,
        _options,
        result=False,
    ),
)
