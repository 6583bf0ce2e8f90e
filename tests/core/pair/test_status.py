"""What is shown of reading from one peer."""

from dataclasses import replace

from spl.core.pair.status import LastError, PairStatus
from spl.core.presence import OFFLINE_S


def test_offline_is_a_peer_that_does_not_answer_and_was_not_heard_for_a_while() -> None:
    """Neither a failure of a moment, nor an answer that is no page, nor an address that we do not dial."""
    nobody = LastError("connect", "", 0, "CONNECT_REFUSED")
    gone = PairStatus(last_error=nobody, attempt=1, silent_s=OFFLINE_S, heard_ms=7)
    assert gone.offline_since_ms == 7
    for other in (
        replace(gone, silent_s=OFFLINE_S - 1),
        replace(gone, attempt=0),
        replace(gone, last_error=LastError("peer-5xx", "", 0, "HTTP_5XX")),
        replace(gone, last_error=LastError("address-refused", "", 0, "CONNECT_REFUSED")),
    ):
        assert other.offline_since_ms is None
