"""`spl ui`: a link on stdout, a browser, the end of the sessions."""

import webbrowser

import pytest

from spl.core.identity.bearer import PAGE
from tests.cli.conftest import Daemon, Run, error

LINK = {"object": "link", "url": "http://127.0.0.1:9100/ui/open?code=ab12", "expires_at": "2026-11-23T06:01:00.000Z"}


def test_print_gives_the_link_alone(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/ui/links"] = (201, LINK)
    assert spl("ui", "--print").out == f"{LINK['url']}\n"
    assert spl("ui").out == f"{LINK['url']}\n"  # no terminal, so no browser
    assert spl("ui", "-o", "json").data == LINK


def test_a_terminal_gets_a_browser_or_if_there_is_none_the_link(
    spl: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["POST", "/v1/ui/links"] = (201, LINK)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)) or len(opened) < 2)
    assert spl("ui", tty=True).out == ""
    assert spl("ui", tty=True).out == f"{LINK['url']}\n"
    assert opened == [LINK["url"]] * 2


def test_end_revokes_the_account_of_the_page(spl: Run, daemon: Daemon) -> None:
    daemon.answers["DELETE", f"/v1/tokens/{PAGE}"] = {"already": False, "revoked": ["tok_1", "tok_2"]}
    assert spl("ui", "--end").out == "every session of the page has ended\n"
    daemon.answers["DELETE", f"/v1/tokens/{PAGE}"] = (404, error("not-found", "no token"))
    assert spl("ui", "--end").out == "no session of the page is open\n"
