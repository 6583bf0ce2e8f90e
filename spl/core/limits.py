"""Every bound of the product in one frozen value; the unit ends each name.

The defaults are the contract's.  `Limits` is passed in, so tests and small
machines lower a bound without touching code; configuration may only lower,
except `intake_day_bytes`, which protects a disk whose size only its operator knows.

A bound stands beside its code instead, with its reason, if lowering it would
break what both sides agree on (forms, levels, grace periods) or if it is a unit
of work (a piece read at once, a pause) rather than a promise.
"""

from .value import dataclass

KIB = 1024
MIB = 1024 * KIB
QUEUE_RECORDS = 50
"""Between network and store; more are a sign that the store is slow."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds, counts in the thing named."""

    # records
    record_bytes: int = MIB
    nesting_levels: int = 64
    thread_chars: int = 256
    actor_chars: int = 256
    parents_count: int = 1000
    vouchers_per_record: int = 4

    # HTTP, both roles
    head_bytes: int = 64 * KIB
    headers_count: int = 100
    target_bytes: int = 8 * KIB
    body_bytes: int = 8 * MIB
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_stall_timeout_s: float = 45.0
    idle_timeout_s: float = 75.0
    linger_s: float = 2.0
    connections_count: int = 1024
    connections_per_source: int = 64
    pipelined_count: int = 16

    # client
    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 30.0
    answer_bytes: int = 8 * MIB
    pool_idle_s: float = 2.0
    redirects_count: int = 3
    event_bytes: int = 3 * MIB
    stream_silence_s: float = 45.0
    heartbeat_s: float = 15.0

    # store
    segment_bytes: int = 64 * MIB
    commit_records: int = 512
    commit_bytes: int = 8 * MIB
    commit_delay_s: float = 0.004
    waiting_writes: int = 4096
    waiting_bytes: int = 32 * MIB
    page_records: int = 10_000
    restore_bytes: int = 16 * 1024 * MIB
    page_records_default: int = 1000
    page_bytes: int = 4 * MIB
    query_records: int = 10_000

    # handshake and pairs
    handshake_bytes: int = 64 * KIB
    manifest_bytes: int = 256 * KIB
    message_age_s: float = 300.0
    nonce_memory_s: float = 900.0
    nonces_count: int = 10_000
    requests_pending: int = 64
    requests_per_address: int = 4
    request_ttl_s: float = 86_400.0
    namespaces_per_pair: int = 64
    pairs_count: int = 1024
    rules_count: int = 256
    handshakes_per_minute: int = 60

    # sync
    longpoll_s: float = 30.0
    poll_interval_min_s: float = 1.0
    poll_backoff_max_s: float = 300.0
    queue_records: int = 2000
    queue_bytes: int = 8 * MIB
    refused_per_pair: int = 1000
    intake_day_bytes: int = 10 * 1024 * MIB
    errors_until_degraded: int = 5
    fetch_ids: int = 1000
    chain_links: int = 64
    chains_count: int = 4096
    manifest_refresh_s: float = 6 * 3600.0
    manifest_ttl_s: float = 7 * 86_400.0
    token_ttl_s: float = 90 * 86_400.0
    token_renew_s: float = 7 * 86_400.0
    proof_age_s: float = 300.0
    proofs_per_pair: int = 2048
    compare_interval_s: float = 3600.0

    # diagnosis: how often the daemon checks, and which values it reports
    beat_s: float = 5.0
    check_s: float = 5.0
    loop_late_s: float = 1.0
    failing_s: float = 30.0
    stalled_s: float = 45.0
    queue_full_s: float = 60.0
    backup_due_s: float = 86_400.0
    disk_low_bytes: int = 1_000_000_000
    disk_floor_bytes: int = 64 * MIB

    # memory
    verified_roots: int = 1024
    shutdown_s: float = 5.0
