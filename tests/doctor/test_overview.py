"""One pair at one moment: what waits and does not move is named by what explains it."""

from spl.doctor.catalogue import Finding
from spl.doctor.overview import stall


def found(code: str, explained_by: str = "") -> Finding:
    return Finding(code, "warn", "path", "", "", "", explained_by)


def test_what_does_not_move_is_named_as_a_finding_does_and_no_sooner() -> None:
    assert stall([]) == ""
    assert stall([found("connect"), found("records-withheld")]) == ""
    assert stall([found("connect"), found("peer-behind")]) == "peer-behind"
    assert stall([found("connect"), found("cursor-stalled", "connect")]) == "connect"
