"""The check and the sizes of the store beside a running daemon."""

import json

from tests.api.conftest import Served


async def test_the_check_ends_with_what_it_read(served: Served) -> None:
    record = {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {}}
    await served.json("POST", "/v1/records", record)
    reply = await served.fetch("POST", "/v1/store/check")
    *_, last = [json.loads(line) for line in reply.body.splitlines()]
    assert last["step"] == "done"
    assert (last["damaged"], last["lines"]) == (0, served.home.store.last_seq)
    token = await served.mint("records:read")
    assert await served.refused("POST", "/v1/store/check", token=token) == (403, "SCOPE_FORBIDDEN")


async def test_stats_tell_sizes_and_the_last_opening(served: Served) -> None:
    found = await served.json("GET", "/v1/store/stats")
    assert found["records_count"] == served.home.store.stats().records_count
    assert found["opened"]["damaged"] == []


async def steps(served: Served, body: object = None) -> list[dict[str, object]]:
    reply = await served.fetch("POST", "/v1/store/check", body)
    assert reply.status == 200, reply.body
    return [json.loads(line) for line in reply.body.splitlines()]


async def emit_and_hurt(served: Served) -> list[str]:
    """Emit records and damage the line of the second; return their ids."""
    record = {"act": "DO", "actor": "did:sync:user:a", "thread": "th"}
    ids = [(await served.json("POST", "/v1/records", {**record, "body": {"n": n}}))["id"] for n in range(3)]
    [segment] = (served.home.path / "store").glob("*.jsonl")
    data = segment.read_bytes()
    assert data.count(b'"n":1}') == 1
    segment.write_bytes(data.replace(b'"n":1}', b'"n":7}'))
    return ids


async def test_a_sound_store_has_nothing_to_repair(served: Served) -> None:
    *_, done, repaired = await steps(served, {"repair": True})
    assert done["step"] == "done"
    assert repaired == {"step": "repaired", "lost": 0, "fetched": 0, "still_lost": 0, "settled": 0}
    assert (await steps(served, {"repair": False}))[-1]["step"] == "done"
    assert await served.refused("POST", "/v1/store/check", {"repair": 1}) == (400, "BAD_FIELD")
    assert await served.refused("POST", "/v1/store/check", {"all": True}) == (400, "BAD_FIELD")


async def test_what_is_damaged_is_missing_after_a_repair_and_everything_else_is_served(served: Served) -> None:
    """Also where no pair has it: counts and lists tell of what there is, and the record can be stored again."""
    ids = await emit_and_hurt(served)
    records = served.home.store.stats().records_count
    assert [item["id"] for item in (await served.json("GET", "/v1/threads/th/records"))["data"]] == [ids[0], ids[2]]
    *_, damage, done, repaired = await steps(served, {"repair": True})
    assert (damage["step"], damage["lines"], damage["held_lines"], done["held_lines"]) == ("damage", 1, 0, 0)
    assert repaired == {"step": "repaired", "lost": 1, "fetched": 0, "still_lost": 1, "settled": 0}
    assert served.home.store.stats().records_count == records - 1
    assert [item["records"] for item in (await served.json("GET", "/v1/threads"))["data"]] == [2]
    assert await served.refused("GET", f"/v1/records/{ids[1]}") == (404, "NOT_FOUND")
    again = {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {"n": 1}, "clock": 1}
    assert (await served.json("POST", "/v1/records", again))["id"] == ids[1]
    *_, damage, done = await steps(served)
    assert (damage["held_lines"], done["held_lines"]) == (1, 1)


async def test_a_repair_that_cannot_go_on_says_so(served: Served) -> None:
    await emit_and_hurt(served)
    served.home.store.close()
    *_, last = await steps(served, {"repair": True})
    assert (last["step"], last["error"]["code"]) == ("error", "STORE_READONLY")  # type: ignore[index]
