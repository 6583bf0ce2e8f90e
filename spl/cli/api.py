"""`spl api`: any route of the daemon, with the body as it comes; for what has no command yet."""

import json
from argparse import Namespace

from ..client.calls import JSON
from ..net.http1 import ResponseHead
from .client import LONG_S
from .command import Command, Shell, UsageError, arg

METHODS = ("GET", "POST", "DELETE")


def _api(args: Namespace, shell: Shell) -> int:
    """Send one request; a refusal is an error as of every command."""
    if not args.path.startswith("/") or not args.path.isascii() or not args.path.isprintable() or " " in args.path:
        raise UsageError("usage", "PATH begins with / and is percent-encoded, such as /v1/status")
    body = b""
    if args.data == "-":
        body = shell.stdin.read()
    elif args.data is not None:
        body = args.data.encode()
    if body and args.method != "POST":
        raise UsageError("usage", f"a {args.method} has no body")
    if body and args.media == JSON:
        try:
            json.loads(body)
        except ValueError as exc:
            raise UsageError("usage", f"--data is not JSON: {exc}") from exc
    heads: list[ResponseHead] = []
    last = b"\n"
    for piece in shell.ctl.request(args.method, args.path, body, args.media, LONG_S, heads):
        shell.out.raw(piece)
        last = piece[-1:] or last
    if shell.out.columns is not None and last != b"\n":
        shell.out.line()
    return 0


TREE = (
    Command(
        "api",
        "Sends one request to the daemon and prints the body of its answer as it comes, also of a stream.\n"
        "A refusal ends it with the exit code of its error; `spl help http` lists the routes.",
        "spl api GET /v1/status\nspl api POST /v1/sync -d '{}'",
        _api,
        (
            arg("method", choices=METHODS, metavar="METHOD", help="GET, POST or DELETE"),
            arg("path", metavar="PATH", help="path and query, such as /v1/records?thread=th_release"),
            arg("-d", "--data", metavar="BODY", help="the body of a POST; - reads it from stdin"),
            arg("--media", default=JSON, metavar="TYPE", help=f"the body's media type (default {JSON})"),
        ),
    ),
)
