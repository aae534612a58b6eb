"""How large the pieces of a prompt are beside running answers."""

from corral_server.engine.pace import Pace


def paced(*steps: tuple[int, float], most: int = 512) -> int:
    pace = Pace(most)
    for tokens, seconds in steps:
        pace.took(tokens, seconds)
    return pace.piece()


def test_the_first_piece_is_as_large_as_it_may_be():
    assert paced() == 512


def test_on_a_slow_machine_pieces_are_short():
    assert paced((512, 15.0)) == 96
    assert paced((512, 600.0)) == 32


def test_on_a_fast_machine_pieces_are_whole():
    assert paced((512, 0.02)) == 512
    assert paced((512, 0.02), most=64) == 64


def test_steps_of_a_few_tokens_say_nothing_of_large_ones():
    assert paced((512, 0.02), (1, 0.01), (8, 0.08)) == 512


def test_one_slow_step_does_not_make_all_pieces_short():
    assert paced((512, 3.0), (512, 3.0), (512, 30.0)) == 128
    assert paced((512, 3.0), (512, 30.0), *[(512, 3.0)] * 20) == 480
