"""What is remembered of the proofs of a peer that asks for long."""

from tests.api.test_auth import PAIR_ID, World, refused


def test_of_a_peer_that_asks_all_day_a_few_minutes_are_remembered() -> None:
    world, proofs = World(), list[dict[str, str]]()
    for _ in range(500):
        world.now_ms += 18_000
        proofs.append(world.proven())
        assert world.ask(proofs[-1])
        assert len(world.auth._proofs[PAIR_ID].seen) <= 64
    world.now_ms -= 500 * 18_000  # set back, our clock must not let one count again
    assert all(refused("auth-invalid", world.ask, proof) for proof in proofs)
