"""Tokens: the text alone on stdout, once; never in a list."""

from tests.cli.conftest import Daemon, Run, error, listed

MINTED = {"object": "token", "token_id": "tok_91ab03cd", "token": "spl_home_sa_1_secret", "scopes": ["records:read"],
          "expires_at": "2026-12-23T06:00:00.000Z", "state": "live"}  # fmt: skip


def test_mint_prints_the_text_alone(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/tokens"] = (201, MINTED)
    flags = "--scopes records:read,records:write --ttl 30d --namespace a --namespace b --pair pair_1 --label dash"
    result = spl("token", "mint", *flags.split())
    assert (result.code, result.out) == (0, "spl_home_sa_1_secret\n")
    assert "secret" not in result.err
    assert "tok_91ab03cd: records:read, records:write; until 2026-12-23" in result.err
    assert daemon.calls[0].json() == {"scopes": ["records:read", "records:write"], "ttl_ms": 2_592_000_000,
                                      "namespaces": ["a", "b"], "pair": "pair_1", "label": "dash"}  # fmt: skip
    spl("token", "mint", "--scopes", "admin")
    assert daemon.calls[1].json() == {"scopes": ["admin"]}
    assert spl("token", "mint", "--scopes", "admin", "-o", "json").data == MINTED


def test_list(spl: Run, daemon: Daemon) -> None:
    live = {"token_id": "tok_1", "scopes": ["admin"], "namespaces": [], "pair_id": "", "label": "", "state": "live",
            "expires_at": "2027-01-23T07:00:00.000Z"}  # fmt: skip
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
        "TOKEN ID  STATE     SCOPES                              NAMESPACES  PAIR    LABEL\n"
        "tok_1     61d left  admin                               all         -       -\n"
        "tok_2     revoked   records:read,records:write,other:x  a,b         pair_1  x\n"
    )


def test_revoke(spl: Run, daemon: Daemon) -> None:
    daemon.answers["DELETE", "/v1/tokens/tok_1"] = {**MINTED, "state": "revoked", "already": False}
    assert spl("token", "revoke", "tok_1").out == "tok_1  revoked\n"
    daemon.answers["DELETE", "/v1/tokens/tok_1"] = {**MINTED, "state": "revoked", "already": True}
    assert spl("token", "revoke", "tok_1").out == "tok_1  already_revoked\n"
    daemon.answers["DELETE", "/v1/tokens/tok_9"] = (404, error("not-found", "no tokens fit"))
    assert spl("token", "revoke", "tok_9").code == 6
