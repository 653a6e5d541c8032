"""Random streams: a function of their key alone, and apart from each other."""

import itertools

import numpy as np

from hpc_maml.sampling.random_streams import Purpose, stream


def test_same_key_same_draws_in_any_order():
    keys = list(itertools.product((0, 7), (Purpose.ACTIONS, Purpose.TASKS), (0, 3), (0, 2), (0, 1)))
    first = {key: stream(*key).standard_normal(4) for key in keys}
    again = {key: stream(*key).standard_normal(4) for key in reversed(keys)}
    assert all(np.array_equal(first[key], again[key]) for key in keys)
    assert len({draws.tobytes() for draws in first.values()}) == len(keys)


def test_more_episodes_leave_the_first_as_they_were():
    few = stream(1, Purpose.ACTIONS).standard_normal((2, 5))
    many = stream(1, Purpose.ACTIONS).standard_normal((4, 5))
    assert np.array_equal(few, many[:2])


def test_the_largest_seed_is_a_seed():
    assert stream(2**63 - 1, Purpose.TASKS).random() != stream(0, Purpose.TASKS).random()


def test_streams_of_every_purpose_are_apart():
    draws = {stream(5, purpose).standard_normal(4).tobytes() for purpose in Purpose}
    assert len(draws) == len(Purpose)
