import pytest

from spl.core.pair.modes import ENGINE, MODES, ModeError, check_mode


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_may_be_asked_for_is_returned(mode: str) -> None:
    assert check_mode(mode) == mode


@pytest.mark.parametrize("mode", [ENGINE, "", "Polling", None, 1, ["polling"], "x" * 1000])
def test_any_other_is_refused_with_those_that_there_are(mode: object) -> None:
    """Only a carrier brings the engine; a peer that names it is refused, whatever else it names."""
    with pytest.raises(ModeError, match="polling, continuous, on-demand") as caught:
        check_mode(mode)
    assert caught.value.code == "bad-field"
    assert len(caught.value.message) < 120
