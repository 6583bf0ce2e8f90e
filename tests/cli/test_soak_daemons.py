"""The daemons of a soak: three, of which two are the pair.

That they pair, sync and end is seen in tests/e2e/test_soak.py.
"""

from spl.cli.soak_daemons import NAMES, Daemons


def test_the_pair_is_driven_at_a_and_watched_at_b() -> None:
    made = Daemons({}, lambda text: None)
    assert made.names == NAMES
    made._ctls = {name: Kept() for name in NAMES}  # type: ignore[misc]
    target = made.target()
    assert [name for name, _ in target.sides] == ["a", "b"]
    assert not made.dead()


class Kept:
    """A client of which nothing is asked."""

    def kept(self) -> None:
        """Return no connection."""
