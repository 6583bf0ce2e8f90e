"""A sink as a value: what is accepted, and that its record reads as it was written."""

from dataclasses import replace

import pytest

from spl.core.consent import KIND_SINK
from spl.core.errors import SplError
from spl.engine import sinks
from spl.engine.sinks import Sink

FAN = Sink("fan", "nats://127.0.0.1:4222", ("music", "org/x"), after=3, born=7, creds="/etc/hub.creds", at="now")


def test_a_record_reads_as_it_was_written() -> None:
    for sink in (FAN, FAN.in_phase("paused", "later", 9), replace(FAN, url="exec:cat -u", creds="")):
        assert sinks.read({"kind": KIND_SINK, **sink.body()}) == sinks.checked(sink)


@pytest.mark.parametrize("changes", [
    {"name": ""}, {"name": "A"}, {"name": "x" * 33}, {"name": "a b"}, {"namespaces": ()}, {"namespaces": ("a", "a")},
    {"namespaces": ("A!",)}, {"subjects": "all"}, {"creds": "relative"}, {"ca": "/a\nb"}, {"url": "http://x"},
    {"url": "exec: "}, {"url": "exec:a\x1b"}, {"url": "exec:" + "x" * 2000}, {"namespaces": tuple(map(str, range(65)))},
])  # fmt: skip
def test_what_is_malformed_is_refused_and_never_read(changes: dict[str, object]) -> None:
    bad = replace(FAN, **changes)  # type: ignore[arg-type]
    with pytest.raises(SplError):
        sinks.checked(bad)
    assert sinks.read({"kind": KIND_SINK, **bad.body()}) is None


@pytest.mark.parametrize("changes", [
    {"kind": "other"}, {"after": -1}, {"after": True}, {"phase": "gone"}, {"url": 7}, {"namespaces": "music"},
    {"namespaces": [7]}, {"passed": None},
])  # fmt: skip
def test_a_record_of_another_form_is_no_sink(changes: dict[str, object]) -> None:
    assert sinks.read({"kind": KIND_SINK, **FAN.body(), **changes}) is None


def test_a_sink_that_was_added_again_has_a_position_of_its_own() -> None:
    assert FAN.place_name != replace(FAN, born=8).place_name
