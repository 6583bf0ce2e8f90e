"""`spl serve`: the daemon in the foreground, for this machine or with --lan for the network that it is on."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Final

from ..core.errors import SplError
from ..core.value import replace
from ..daemon import ServeOptions, run
from ..home.config import PRIVATE_ONLY, is_loopback
from ..home.disk import Disk
from ..home.home import read_config
from ..net.sockets import lan_address
from .command import Command, Shell, UsageError, arg, number
from .fit import tilde
from .out import Out

_EVERYWHERE: Final = ("0.0.0.0", "::", "")  # noqa: S104 - what --lan is for
_LETS_IN: Final = {
    "manual": "ask for a pair, which you approve or reject",
    "auto": "pair without asking you: federation.approval is auto",
    "closed": "not ask for a pair: federation.approval is closed",
}


def _serve(args: Namespace, shell: Shell) -> int:
    options = ServeOptions(
        home=Path(shell.home),
        host=args.host.strip("[]") if args.host else args.host,  # IPv6 also as a URL writes it
        port=args.port,
        public_url=args.public_url,
        insecure_localhost=args.insecure_localhost,
        log_format=args.log_format,
    )
    was_there = os.path.isdir(shell.home)
    try:
        return run(opened(options, shell.out) if args.lan else options)
    except SplError as exc:
        if not was_there and os.path.isdir(shell.home):
            exc.facts["home"] = f"{tilde(shell.home, shell.env)} was made and has no identity yet: spl init"
        raise


def opened(options: ServeOptions, out: Out) -> ServeOptions:
    """Return the options of a daemon that serves the private network of this machine, and print what that opens.

    Flags beside --lan count more than it; of the configuration file it replaces host and public_url.  Raises
    UsageError, ConfigError "config-invalid", ListenError "listen-failed" on no private network.
    """
    options = replace(options, host=options.host or _EVERYWHERE[0])
    config = read_config(options.home, Disk(), options.flags())
    if is_loopback(config.host):
        raise UsageError("usage", f"--lan and --host {config.host} contradict each other")
    if not config.federation_allow_http:
        options = replace(options, allow_http=PRIVATE_ONLY)
    if options.public_url is None:
        if config.port == 0:
            raise UsageError("usage", "--lan needs a port that peers can know", hint="spl serve --lan --port 9100")
        address = lan_address() if config.host in _EVERYWHERE else config.host
        options = replace(options, public_url=f"http://{f'[{address}]' if ':' in address else address}:{config.port}")
    place = "every address of this machine" if config.host in _EVERYWHERE else config.host
    out.warn(f"! open to the network: port {config.port} of {place}, by plain http")
    out.warn(f"  everybody there may see this instance's name and key, and {_LETS_IN[config.federation_approval]};")
    out.warn("  they may read what is synced on its way, but not change it, and everything else needs a token")
    out.warn(f"  on the other machine: spl federation pair {options.public_url}/")
    if config.federation_approval == "manual":
        out.warn("  who asks, and what they ask for, in another terminal here: spl aitl list")
    return options


TREE: Final = (
    Command(
        "serve",
        "Runs the daemon, which holds the records of one home, serves its API and syncs with paired instances.\n"
        "It runs in the foreground, one per home, and ends cleanly on SIGTERM or Ctrl-C; on SIGHUP it reads\n"
        "its configuration again. The flags count more than the configuration file, and for this run alone.",
        "spl serve\nspl serve --lan",
        _serve,
        (
            arg("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1, this machine alone)"),
            arg(
                "--port", type=number(0, 65535), metavar="N", help="port to listen on (default: 9100; 0: any free one)"
            ),
            arg(
                "--public-url",
                metavar="URL",
                help="where peers reach this daemon, as it publishes it (default: made of host and port)",
            ),
            arg(
                "--lan",
                action="store_true",
                help="serve the private network of this machine by plain http; needed again at each start",
            ),
            arg(
                "--insecure-localhost",
                action="store_true",
                help="take requests without tokens: each local user is an admin",
            ),
            arg("--log-format", choices=("logfmt", "json"), help="form of the log lines (default: logfmt)"),
        ),
        result=False,
        whose="home",
    ),
)
