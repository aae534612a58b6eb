"""Which slot a prompt gets and what of it is kept."""

from hypothesis import given
from hypothesis import strategies as st

from corral_server.engine.scheduling import MINIMUM, REST, IdleSlot, Rewind, choose_slot, common_prefix, fits, outstayed, reusable

PLAIN = Rewind()


@given(st.lists(st.integers(0, 3), max_size=600), st.lists(st.integers(0, 3), max_size=600), st.integers(0, 600))
def test_the_common_prefix_is_exact(a: list[int], b: list[int], shared: int):
    b = a[:shared] + b
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(a, b) == expected


def test_one_token_is_always_evaluated_anew():
    assert reusable([1, 2, 3], [1, 2, 3], 0, PLAIN) == 2
    assert reusable([1, 2, 3], [1, 2, 3, 4], 0, PLAIN) == 3
    assert reusable([1, 2, 3], [1], 0, PLAIN) == 0


def test_a_window_that_moved_on_holds_no_shorter_prefix():
    held, wanted = list(range(1000)), [*range(700), 5, 6]
    assert reusable(held, wanted, 0, Rewind(window=512)) == 700
    assert reusable(held, wanted, 188, Rewind(window=512)) == 700
    assert reusable(held, wanted, 189, Rewind(window=512)) == 0
    # Continuing at the very end needs nothing that was forgotten.
    assert reusable(held, [*held, 7], 600, Rewind(window=512)) == 1000


def test_a_recurrent_state_is_right_at_its_end_only():
    assert reusable([1, 2, 3], [1, 2, 3, 4], 0, Rewind(recurrent=True)) == 3
    assert reusable([1, 2, 3], [1, 2, 4], 0, Rewind(recurrent=True)) == 0
    assert reusable([1, 2, 3], [1, 2, 3], 0, Rewind(recurrent=True)) == 0


def test_the_longest_prefix_wins_over_the_least_recently_used():
    idle = [IdleSlot(0, [1, 2, 3, 9], 1), IdleSlot(1, [1, 2, 3, 4, 5], 5), IdleSlot(2, [], 0)]
    assert choose_slot(idle, [1, 2, 3, 4, 5, 6], PLAIN) == (idle[1], 5)


def test_without_a_worthwhile_prefix_an_empty_slot_is_taken_then_the_oldest():
    idle = [IdleSlot(0, [7] * 10, 3), IdleSlot(1, [8] * 10, 2), IdleSlot(2, [], 9)]
    assert choose_slot(idle, [1] * 30, PLAIN) == (idle[2], 0)
    assert choose_slot(idle[:2], [1] * 30, PLAIN) == (idle[1], 0)
    assert choose_slot([], [1], PLAIN) is None


def test_a_request_waits_for_cells_unless_it_is_alone():
    assert fits(100, [], 100, 64)
    assert fits(100, [20], 16, 64)
    assert not fits(100, [20], 17, 64)


def test_a_rested_sequence_gives_its_cells_up_when_it_can_be_had_again():
    assert outstayed(500, REST, saved=True)
    assert outstayed(MINIMUM - 1, REST, saved=False)
    assert not outstayed(500, REST, saved=False)
    assert not outstayed(500, REST / 2, saved=True)
    assert not outstayed(0, REST, saved=True)
