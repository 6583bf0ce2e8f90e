"""What each grant lacks, said with the command that helps."""

from spl.core import consent
from spl.core.consent import Grant, GrantRow, PairGrants
from spl.core.record.namespace import Namespace
from tests.core.test_consent import SPACES, a_pair, folded, record

PAIR = "pair_00000001"
BACK = f"spl federation grant {PAIR} --namespace x --maps x,music --hash-level L0"


def only(book: PairGrants, spaces: dict[str, Namespace] | None = None, **pair: object) -> GrantRow:
    [line] = consent.lines(a_pair(), book, {**SPACES} if spaces is None else spaces, "bob")
    return line


def test_a_grant_in_full_effect_lacks_nothing() -> None:
    line = only(folded(record(Grant("music", "x", 1, 3))))
    assert line == GrantRow("out", "music", "x", "L1", "L1", 3)
    assert line.to_json()["maps"] == ["music", "x"]
    assert (line.at_peer, line.fix, line.code) == (False, "", "")
    back = only(folded(record(Grant("x", "music", 2, 1), ours=False)))
    assert back == GrantRow("in", "music", "x", "L2", "L2", 1)
    assert back.to_json()["maps"] == ["x", "music"], "as the granting side wrote them"
    assert only(folded(record(Grant("music", "x", None, 4)))).level == "none"
    assert only(folded(record(Grant("x", "music", None, 4), ours=False))).level == "none"


def test_one_sided_exact_sharing_names_the_other_sides_command() -> None:
    line = only(folded(record(Grant("music", "x", 0, 1))))
    assert (line.granted, line.level, line.missing) == ("L0", "L1", "L0 behaves as L1 until bob grants it too")
    assert (line.fix, line.at_peer, line.code) == (BACK, True, "consent-missing")
    theirs = only(folded(record(Grant("music", "x", 0, 1), ours=False)))
    assert (theirs.level, theirs.missing) == ("L1", "L0 behaves as L1 until we grant it too")
    assert (theirs.fix, theirs.at_peer, theirs.code) == (BACK, False, "")
    both = folded(record(Grant("music", "x", 0, 1)), record(Grant("x", "music", 0, 1), ours=False))
    assert [(line.level, line.missing) for line in consent.lines(a_pair(), both, SPACES, "bob")] == [("L0", "")] * 2


def test_what_waits_for_the_peer_and_what_has_no_place_here() -> None:
    waits = only(folded(record(Grant("music", "x", 1, 1), held=False)))
    assert (waits.level, waits.missing, waits.code) == ("none", "bob does not hold it yet", "consent-missing")
    assert waits.fix == f"spl federation refresh {PAIR}"
    lost = only(folded(record(Grant("a", "org/team/x", 1, 1), ours=False)), {**SPACES, "org": Namespace("org")})
    assert (lost.level, lost.code) == ("none", "namespace-unmapped")
    assert lost.fix == "spl namespace create org/team && spl namespace create org/team/x"
    gone = only(folded(record(Grant("music", "x", 1, 1))), {"music": Namespace("music", active=False)})
    assert (gone.level, gone.missing, gone.fix) == ("none", "music is not active here", "spl namespace create music")


def test_what_the_handshake_agreed_has_lines_of_its_own() -> None:
    pair, book = a_pair("default", "music", "lost"), folded(record(Grant("music", "music", 1, 1)))
    assert [(line.direction, line.namespace, line.version) for line in consent.agreed(pair, book, SPACES)] == [
        ("out", "default", 0), ("in", "default", 0), ("in", "music", 0),
    ]  # fmt: skip
    assert [line.level for line in consent.lines(pair, book, SPACES, "bob")] == ["L1"]


def test_a_withdrawn_grant_lacks_no_namespace() -> None:
    for grant, ours in ((Grant("lost", "x", None, 2), True), (Grant("x", "lost", None, 2), False)):
        line = only(folded(record(grant, ours=ours)))
        assert (line.level, line.missing, line.fix, line.code) == ("none", "", "", "")


def test_a_grant_of_what_was_agreed_says_its_level() -> None:
    for level, said in ((0, "L0"), (2, "L2"), (None, "none")):
        for ours in (True, False):
            line = only(folded(record(Grant("default", "default", level, 2), ours=ours)))
            assert (line.granted, line.level, line.missing) == (said, said, "")


def test_the_command_is_one_that_the_parser_takes() -> None:
    assert consent.command("pair_1", "a", "b/c", consent.EXACT).endswith("--maps a,b/c --hash-level L0")
