"""The log as a sink reads it: its namespaces, in order, up to what was announced, and only while it is granted."""

from spl.core.consent import KIND_SINK, THREAD
from spl.engine.reader import BATCH_RECORDS, LogReader, seq_in
from spl.engine.sinks import Sink
from spl.home.writes import Arrive, Own
from tests.nodes import Node

FAN = Sink("fan", "nats://127.0.0.1", ("default", "music"))


def grant(node: Node, sink: Sink) -> None:
    node.write(Own(THREAD, KIND_SINK, sink.body()))


def test_batches_follow_each_other_to_the_end(node: Node) -> None:
    reader = LogReader(node.feed.source)
    grant(node, FAN)
    made = [node.emit(str(number), ns="music" if number % 2 else "") for number in range(BATCH_RECORDS + 10)]
    node.emit("hidden", ns="other")
    first = reader.batch(FAN, 0)
    second = reader.batch(FAN, first.seq)
    assert len(first.records) == BATCH_RECORDS
    assert [each.body for each in (*first.records, *second.records)] == [each.raw for each in made]
    assert reader.batch(FAN, second.seq).records == ()
    assert reader.count(FAN.namespaces, 0, first.seq) == BATCH_RECORDS
    assert reader.total(FAN.namespaces) == len(made)
    assert {each.signer for each in first.records} == {node.did}
    assert reader.source.chain(node.did) == node.chain


def test_nothing_is_read_of_a_sink_that_is_another_one_now(node: Node) -> None:
    reader = LogReader(node.feed.source)
    node.emit("a record")
    assert reader.batch(FAN, 0).records == ()
    grant(node, FAN)
    assert len(reader.batch(FAN, 0).records) == 1
    grant(node, FAN.in_phase("paused", "later"))
    assert reader.batch(FAN, 0).records == ()
    grant(node, FAN.in_phase("removed", "later"))
    assert reader.sink("fan") is None
    assert not node.home.views.sinks


def test_reserved_threads_are_in_no_batch(node: Node) -> None:
    reader = LogReader(node.feed.source)
    grant(node, FAN)
    assert reader.batch(FAN, 0).records == ()


def test_a_record_is_found_in_its_namespace_alone(node: Node) -> None:
    reader = LogReader(node.feed.source)
    made = node.emit("one", ns="music")
    found = reader.find(made.id, "music")
    assert found is not None
    assert found[1] == made.raw
    assert reader.find(made.id, "default") is None


def test_what_an_earlier_line_of_another_namespace_is_too_is_known(node: Node) -> None:
    reader = LogReader(node.feed.source)
    grant(node, FAN)
    made = node.emit("in both")
    hidden = node.emit("elsewhere first", ns="other")
    node.write(Arrive(made, "music", "pair_x"))
    node.write(Arrive(hidden, "music", "pair_x"))
    assert [each.again for each in reader.batch(FAN, 0).records] == [False, True, False]


def test_positions() -> None:
    assert seq_in("ab:12", "ab") == 12
    for bad in ("ab:", "cd:12", "ab:+1", "ab:1_0", "12", "", "ab:" + "9" * 19):
        assert seq_in(bad, "ab") is None
