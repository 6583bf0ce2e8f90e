"""`spl ui`: the page of this daemon in a browser.

A browser is told the link by its arguments, which other users of a machine can read, and who is faster uses it.
Rejected: a file of mode 0600 in the home that leads there, because browsers that come as snaps or flatpaks cannot read
hidden folders, and would show an error in place of the page.
"""

import webbrowser
from argparse import Namespace
from typing import Final

from ..client.calls import quote
from ..core.identity import bearer
from .client import CtlError
from .command import Command, Shell, arg


def _ui(args: Namespace, shell: Shell) -> int:
    if args.end:
        return _end(shell)
    link = shell.ctl.post("/v1/ui/links", {})
    if shell.printed("spl.ui/1", link):
        return 0
    url = str(link["url"])
    if args.print or not shell.out.interactive or not webbrowser.open(url):
        shell.out.line(url)
        shell.out.hint("the link works once, within a minute")
    else:
        shell.out.note("the page opens in the browser; if it does not: spl ui --print")
    return 0


def _end(shell: Shell) -> int:
    try:
        ended = shell.ctl.delete(f"/v1/tokens/{quote(bearer.PAGE)}")
        number = 0 if ended["already"] else len(ended["revoked"])
    except CtlError as exc:
        if exc.code != "not-found":
            raise
        number = 0
    if not shell.printed("spl.ui_ended/1", {"ended": bool(number)}):
        shell.out.line("every session of the page has ended" if number else "no session of the page is open")
    return 0


TREE: Final = (
    Command(
        "ui",
        "Opens the daemon's page: every pair with both sides, lags, findings with their fix, what is shared.\n"
        "The page only reads. A link works once, within a minute; a session lasts a week, or until --end.\n"
        "Other users of this machine may see the link as it opens the browser; --print gives it to the terminal only.",
        "spl ui --print",
        _ui,
        (
            arg("--print", action="store_true", choice="what", help="print the link instead of opening a browser"),
            arg("--end", action="store_true", choice="what", help="end every session of the page, in all browsers"),
        ),
    ),
)
