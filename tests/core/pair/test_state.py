"""The values of a pair: maps as they travel."""

import pytest

from spl.core.pair.state import PairError, maps_from_json, maps_to_json


def test_maps_travel_as_objects() -> None:
    maps = (("music", "projects/music"), ("a", "b"))
    assert maps_from_json(maps_to_json(maps)) == maps


@pytest.mark.parametrize("value", [
    None, {}, [1], [{}], [{"local": "a"}], [{"local": "a", "peer": 1}], [{"local": "a", "peer": "b", "more": "c"}],
])  # fmt: skip
def test_other_forms_of_maps_are_refused(value: object) -> None:
    with pytest.raises(PairError) as caught:
        maps_from_json(value)
    assert caught.value.code == "bad-field"
