"""Any request: the body untouched, the error that every command has."""

from tests.cli.conftest import Daemon, Run, chunked, error


def test_an_answer_is_printed_as_it_is(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status?x=%20"] = {"b": 1, "a": "é"}
    result = spl("api", "GET", "/v1/status?x=%20")
    assert (result.code, result.out, result.err) == (0, '{"b": 1, "a": "\\u00e9"}', "")
    daemon.answers["POST", "/v1/store/check"] = chunked({"n": 1}, {"n": 2})
    assert spl("api", "POST", "/v1/store/check", "-d", "{}").out == '{"n": 1}\n{"n": 2}\n'
    assert daemon.sent("POST", "/v1/store/check").body == b"{}"


def test_a_body_from_stdin_in_another_form(spl: Run, daemon: Daemon) -> None:
    daemon.answers["POST", "/v1/records"] = {"ok": True}
    assert spl("api", "POST", "/v1/records", "-d", "-", "--media", "application/x-ndjson", stdin=b"{}\n{}\n").code == 0
    call = daemon.sent("POST", "/v1/records")
    assert (call.body, call.headers["content-type"]) == (b"{}\n{}\n", "application/x-ndjson")


def test_a_refusal_has_the_exit_code_of_its_error(spl: Run, daemon: Daemon) -> None:
    for status, code, exit_code in ((403, "scope-forbidden", 4), (404, "not-found", 6), (409, "pair-exists", 7)):
        daemon.answers["GET", "/v1/x"] = (status, error(code, "no"))
        result = spl("api", "GET", "/v1/x")
        assert (result.code, result.out) == (exit_code, "")


def test_what_is_no_request_is_refused_before_it_is_sent(spl: Run, daemon: Daemon) -> None:
    for words in (
        ("GET", "v1"),
        ("GET", "/a b"),
        ("GET", "/v1", "-d", "{}"),
        ("POST", "/v1", "-d", "{"),
        ("PUT", "/v1"),
    ):
        assert spl("api", *words).code == 2
    assert daemon.calls == []
