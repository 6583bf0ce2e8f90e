"""Facts that nobody gathered."""

from spl.doctor import conditions
from spl.doctor.catalogue import CATALOGUE, findings
from spl.doctor.checks import DAEMON, OURSELVES, PAIR, lines
from spl.doctor.facts import Facts


def test_what_was_not_gathered_shows_nothing() -> None:
    """No finding, no grave one, and no check that says that all is well."""
    known = Facts()
    assert findings(known) == []
    assert not any(row.grave(known) for row in CATALOGUE)
    assert not conditions.is_theirs(known)
    assert [lines(checks, known, []) for checks in (DAEMON, OURSELVES, PAIR)] == [[], [], []]
