"""`spl serve`: the daemon in the foreground."""

from argparse import Namespace
from pathlib import Path
from typing import Final

from ..daemon import ServeOptions, run
from .command import Command, Shell, arg, number


def _serve(args: Namespace, shell: Shell) -> int:
    return run(
        ServeOptions(
            home=Path(shell.home),
            host=args.host.strip("[]") if args.host else args.host,  # IPv6 also as a URL writes it
            port=args.port,
            public_url=args.public_url,
            insecure_localhost=args.insecure_localhost,
            log_format=args.log_format,
        )
    )


TREE: Final = (
    Command(
        "serve",
        "Runs the daemon, which holds the records of one home, serves its API and syncs with paired instances.\n"
        "It runs in the foreground, one per home, and ends cleanly on SIGTERM or Ctrl-C.",
        "spl serve --host 127.0.0.1 --port 9100",
        _serve,
        (
            arg("--host", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)"),
            arg("--port", type=number(0, 65535), metavar="N", help="port to listen on (default 9100)"),
            arg("--public-url", metavar="URL", help="where peers reach this daemon; published in its manifest"),
            arg("--insecure-localhost", action="store_true", help="accept requests from this machine without tokens"),
            arg("--log-format", choices=("logfmt", "json"), help="form of the log lines (default logfmt)"),
        ),
        result=False,
    ),
)
