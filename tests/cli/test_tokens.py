"""Tokens: the text alone on stdout, once; never in a list."""

from pathlib import Path

from tests.cli.conftest import Daemon, Run, child, error, listed

MINTED = {"object": "token", "token_id": "tok_91ab03cd", "token": "spl_home_sa_1_secret", "scopes": ["records:read"],
          "expires_at": "2026-12-23T06:00:00.000Z", "state": "live"}  # fmt: skip


def test_mint_prints_the_text_alone(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/tokens"] = (201, MINTED)
    flags = "--scopes records:read,records:write --ttl 30d --namespace a --namespace b --pair pair_1 --label dash"
    result = spl("token", "mint", *flags.split())
    assert (result.code, result.out) == (0, "spl_home_sa_1_secret\n")
    assert "secret" not in result.err
    assert "tok_91ab03cd: records:read, records:write; until 2026-12-23" in result.err
    assert daemon.sent("POST", "/v1/tokens").json() == {
        "scopes": ["records:read", "records:write"], "ttl_ms": 2_592_000_000,
        "namespaces": ["a", "b"], "pair": "pair_1", "label": "dash",
    }  # fmt: skip
    spl("token", "mint", "--scopes", "admin")
    assert daemon.sent("POST", "/v1/tokens").json() == {"scopes": ["admin"]}
    assert spl("token", "mint", "--scopes", "admin", "-o", "json").data == MINTED


def test_list(spl: Run, daemon: Daemon) -> None:
    live = {"token_id": "tok_1", "scopes": ["admin"], "namespaces": [], "pair_id": "", "label": "", "state": "live",
            "created_at": "2026-11-20T05:00:00.000Z", "expires_at": "2027-01-23T07:00:00.000Z"}  # fmt: skip
    dead = {
        **live,
        "token_id": "tok_2",
        "scopes": ["records:write", "other:x", "records:read"],
        "namespaces": ["a", "b"],
        "pair_id": "pair_1",
        "label": "x",
        "state": "revoked",
    }
    daemon.answers["GET", "/v1/tokens"] = listed(live, dead)
    assert spl("token", "list", tty=True).out == (
        "TOKEN ID  STATE     LABEL  CREATED  PAIR    SCOPES                              NAMESPACES\n"
        "tok_1     61d left  -      3d ago   -       admin                               all\n"
        "tok_2     revoked   x      3d ago   pair_1  records:read,records:write,other:x  a,b\n"
    )


def test_the_tokens_of_two_pairs_are_told_apart_on_a_narrow_terminal(spl: Run, daemon: Daemon) -> None:
    token = {"scopes": ["federation:sync", "federation:subscribe"], "namespaces": ["default"], "state": "live",
             "created_at": "2026-11-20T05:00:00.000Z", "expires_at": "2027-01-23T07:00:00.000Z"}  # fmt: skip
    daemon.answers["GET", "/v1/tokens"] = listed(*(
        {**token, "token_id": f"tok_{number:08d}", "pair_id": f"pair_{number:08d}",
         "peer_did": f"did:sync:instance:{name}-{number:024x}", "label": f"pair with did:sync:instance:{name}"}
        for number, name in enumerate(("alices-notebook", "alices-desktop"))
    ))  # fmt: skip
    assert spl("token", "list", tty=True, env={"COLUMNS": "60"}).out == (
        "TOKEN ID      STATE     LABEL                      CREATED\n"
        "tok_00000000  61d left  pair with alices-notebook  3d ago\n"
        "tok_00000001  61d left  pair with alices-desktop   3d ago\n"
    )


def test_revoke(spl: Run, daemon: Daemon) -> None:
    daemon.answers["DELETE", "/v1/tokens/tok_1"] = {**MINTED, "state": "revoked", "already": False}
    assert spl("token", "revoke", "tok_1").out == "tok_1  revoked\n"
    daemon.answers["DELETE", "/v1/tokens/tok_1"] = {**MINTED, "state": "revoked", "already": True}
    assert spl("token", "revoke", "tok_1").out == "tok_1  already_revoked\n"
    daemon.answers["DELETE", "/v1/tokens/tok_9"] = (404, error("not-found", "no tokens fit"))
    assert spl("token", "revoke", "tok_9").code == 6


def test_rotate_one_pair_one_token_or_every_pair(spl: Run, daemon: Daemon) -> None:
    held = {"direction": "issued to us", "token_id": "tok_2", "scopes": []}
    daemon.answers["POST", "/v1/federation/pairs/pair_1/rotate-tokens"] = {"pair_id": "pair_1", "tokens": [held]}
    assert spl("token", "rotate", "pair_1").out == "pair_1  rotated, tok_2\n"
    daemon.answers["POST", "/v1/tokens/tok_1/rotate"] = (201, {**MINTED, "replaced": "tok_1"})
    result = spl("token", "rotate", "tok_1")
    assert result.out == "spl_home_sa_1_secret\n"
    assert "tok_91ab03cd replaces tok_1" in result.err
    refused = {"pair_id": "pair_2", "error": error("connect", "no answer")}
    daemon.answers["POST", "/v1/tokens/rotate"] = listed({"pair_id": "pair_1", "token_id": "tok_3"}, refused)
    result = spl("token", "rotate")
    assert result.out == "pair_1  rotated, tok_3\npair_2  FAILED: no answer [connect]\n"
    assert result.code == 3
    daemon.answers["POST", "/v1/federation/pairs/dash/rotate-tokens"] = (404, error("pair-unknown", "no pair 'dash'"))
    daemon.answers["POST", "/v1/tokens/dash/rotate"] = (201, {**MINTED, "replaced": "tok_1"})
    assert "replaces tok_1" in spl("token", "rotate", "dash").err
    daemon.answers["POST", "/v1/tokens/rotate"] = listed()
    assert spl("token", "rotate").code == 0


def test_info_by_id_or_by_text_and_the_text_is_never_shown(spl: Run, daemon: Daemon) -> None:
    token = {name: value for name, value in MINTED.items() if name != "token"}
    daemon.answers["GET", "/v1/tokens/tok_91ab03cd"] = token
    assert "tok_91ab03cd" in spl("token", "info", "tok_91ab03cd").out
    daemon.answers["POST", "/v1/tokens/inspect"] = {**token, "pair_id": "pair_1", "issuer_did": "did:x"}
    result = spl("token", "info", "--stdin", stdin=b"spl_home_sa_1_secret\n")
    assert "did:x" in result.out
    assert "secret" not in result.out + result.err
    assert daemon.sent("POST", "/v1/tokens/inspect").json() == {"token": "spl_home_sa_1_secret"}
    assert spl("token", "info").code == spl("token", "info", "tok_1", "--stdin").code == 2


def test_revoking_a_pairs_token_says_what_stops_the_pair(spl: Run, daemon: Daemon) -> None:
    daemon.answers["DELETE", "/v1/tokens/tok_1"] = {**MINTED, "pair_id": "pair_1", "state": "revoked"}
    result = spl("token", "revoke", "tok_1")
    assert (result.code, result.out) == (0, "tok_1  revoked\n")
    assert "to stop the pair itself: spl federation pause pair_1" in result.err
    assert "spl token rotate pair_1" in result.err


def test_a_token_that_could_not_be_shown_is_revoked_again(daemon: Daemon, home: Path) -> None:
    """A bearer that nobody saw would live for 90 days."""
    daemon.answers["POST", "/v1/tokens"] = (201, MINTED)
    daemon.answers["DELETE", "/v1/tokens/tok_91ab03cd"] = MINTED
    with open("/dev/full", "w") as full:
        process = child("-m", "spl", "token", "mint", "--scopes", "admin", home=home, stdout=full)
        err = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert "the new token is revoked again" in err
    assert "secret" not in err
    assert ("DELETE", "/v1/tokens/tok_91ab03cd") in [(call.method, call.target) for call in daemon.calls]
