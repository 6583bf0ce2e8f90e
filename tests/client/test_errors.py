"""One class a kind of error; codes of newer daemons count as the nearest of ours."""

import pytest

from spl.client import errors
from spl.core.errors import CODES


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "auth-invalid", errors.ForbiddenError),
        (404, "not-found", errors.MissingError),
        (409, "pair-state-conflict", errors.ConflictError),
        (422, "usage", errors.InvalidError),
        (429, "rate-limited", errors.UnreachableError),
        (500, "internal", errors.ClientError),
    ],
)
def test_an_unknown_code_is_named_and_counts_as_the_nearest(status: int, code: str, kind: type) -> None:
    error = errors.refusal({"code": "NEW_THING", "message": "m"}, status)
    assert (type(error), error.code, error.message, error.http_status) == (kind, code, "m (new-thing)", status)


@pytest.mark.parametrize("form", [{}, {"code": "INTERNAL", "hint": "spl logs"}])
def test_a_redirect_is_no_defect_of_the_daemon(form: dict[str, str]) -> None:
    error = errors.refusal(form, 307)
    assert (error.code, error.http_status) == ("redirect", 307)
    assert "URL" in error.hint


def test_facts_and_hint_of_a_refusal_are_kept() -> None:
    error = errors.refusal(
        {"object": "error", "code": "PAIR_PAUSED", "message": "no", "hint": "h", "pair_id": "p"}, 409
    )
    assert (error.code, error.hint, error.facts) == ("pair-paused", "h", {"pair_id": "p"})


def test_every_code_has_a_class() -> None:
    for code in CODES:
        assert isinstance(errors.fault(code), errors.ClientError)
