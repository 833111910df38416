"""Run with: pytest tests/training/test_plan.py"""

import itertools

import pytest

from ace_lora.training.plan import Plan


def songs_of(plan, steps, process=0):
    return [[draw.song for draw in batch] for step in steps for batch in plan.draws(step, process)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 20])
def test_each_epoch_has_each_song_once(batch_size):
    plan = Plan(range(10, 20), seed=1, batch_size=batch_size)
    per_epoch = plan.batches_per_epoch
    assert per_epoch == -(-10 // batch_size)
    epochs = [songs_of(plan, range(e * per_epoch, (e + 1) * per_epoch)) for e in range(3)]
    for batches in epochs:
        assert sorted(itertools.chain(*batches)) == list(range(10))
    if batch_size < 4:
        assert epochs[0] != epochs[1]


def test_batches_hold_songs_of_similar_length():
    frames = [100 * (i % 2) + i for i in range(32)]
    plan = Plan(frames, seed=0, batch_size=4)
    for batch in songs_of(plan, range(8)):
        assert len({song % 2 for song in batch}) == 1


def test_a_step_is_the_same_however_it_is_reached():
    one, other = Plan([5] * 7, seed=2, batch_size=2), Plan([5] * 7, seed=2, batch_size=2)
    steps = [one.draws(step) for step in range(12)]
    assert [other.draws(step) for step in reversed(range(12))] == steps[::-1]
    assert Plan([5] * 7, seed=3, batch_size=2).draws(0) != steps[0]


def test_accumulation_and_processes_share_one_order():
    single = Plan([5] * 5, seed=0)
    order = [batch[0] for batch in songs_of(single, range(24))]
    accumulated = Plan([5] * 5, seed=0, accumulate=4)
    assert [batch[0] for batch in songs_of(accumulated, range(6))] == order
    shared = Plan([5] * 5, seed=0, accumulate=2, processes=2)
    for step in range(6):
        mine, others = (songs_of(shared, [step], process) for process in (0, 1))
        assert [mine[0][0], others[0][0], mine[1][0], others[1][0]] == order[4 * step : 4 * step + 4]
    assert [accumulated.epoch_of(step) for step in range(6)] == [0, 1, 2, 3, 3, 4]
    assert [single.epoch_of(step) for step in (0, 4, 5)] == [0, 0, 1]
    assert accumulated.steps_per_epochs(1) == 2 and accumulated.steps_per_epochs(4) == 5


def test_weights_of_a_step_sum_to_one_over_all_processes():
    plan = Plan([5] * 5, seed=0, batch_size=2, accumulate=2, processes=2)
    for step in range(5):
        batches = [batch for process in (0, 1) for batch in plan.draws(step, process)]
        assert sum(draw.weight for batch in batches for draw in batch) == pytest.approx(1)
        for process in (0, 1):
            assert [batch[0].last_of_step for batch in plan.draws(step, process)] == [False, True]
