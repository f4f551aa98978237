import numpy as np

from hushprompt.seeding import stream


def test_a_stream_depends_on_seed_purpose_and_place_and_nothing_else():
    draws = {
        key: stream(*key).integers(2**62)
        for key in [
            (1, "a"),
            (2, "a"),
            (1, "b"),
            (1, "a", 0),
            (1, "a", 1),
            (1, "a", 0, 1),
            (1, "a", 1, 0),
            (1, "a", "1"),
        ]
    }
    assert len(set(draws.values())) == len(draws)
    assert stream(1, "a", 0, 1).integers(2**62) == draws[(1, "a", 0, 1)]


def test_places_cannot_be_spelled_into_each_other():
    assert stream(1, "a", 11, 1).integers(2**62) != stream(1, "a", 1, 11).integers(2**62)
    assert stream(1, "a,1").integers(2**62) != stream(1, "a", 1).integers(2**62)


def test_many_streams_never_collide():
    first = [
        int(stream(1, "noise", round_index, client).integers(2**63))
        for round_index in range(40)
        for client in range(100)
    ]
    assert len(set(first)) == len(first)


def test_streams_are_uncorrelated():
    a, b = (stream(1, "noise", client).normal(size=50_000) for client in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 50_000**0.5
