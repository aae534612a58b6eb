"""The draft model's own context: what its cells hold follows the answers, whatever happens to them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.random_models import Shape, random_model

from corral_server.engine.draft_model import open_draft
from corral_server.engine.drafter import Drafter
from corral_server.engine.drafting import MOST, ModelDraft
from corral_server.engine.jobs import make_job
from corral_server.engine.library import L, Log
from corral_server.engine.model import load_model
from corral_server.engine.plan import EnginePlan, ModelFacts, make_plan
from corral_server.engine.sequences import Slot
from corral_server.engine.vocabulary import Vocabulary
from corral_server.spec import EngineSpec

SMALL = Shape("llama", layers=2, width=128, feed_forward=256, quantised="F32", sharp=3.0)
FACTS = ModelFacts("llama", 4096, causal=True, pooling_type=None)

Make = Callable[..., Drafter]


@pytest.fixture(scope="module")
def library() -> Log:
    L.llama_backend_init()
    return Log()


@pytest.fixture(scope="module")
def main(library: Log) -> Any:
    return load_model(str(random_model(SMALL)), library, gpu_layers=0)


@pytest.fixture
def make(library: Log, main: Any) -> Make:
    def maker(shape: Shape = SMALL, **changes: int) -> Drafter:
        spec = EngineSpec(context_length=1024, slots=3, micro_batch=64, kv_cache="F32", flash_attention="Off", draft_source="file:///d")
        plan: EnginePlan = replace(make_plan(spec, FACTS), **changes)
        return Drafter(open_draft(str(random_model(shape)), main, plan, library), Vocabulary(main))

    return maker


def answer(main: Any, tokens: list[int], slot: int = 0) -> Slot:
    """A slot whose answer has begun: the last token is the one that was chosen last."""
    asked = {"id": slot, "prompt": tokens[:-1], "draft": {"sure": 0.0}}
    job = make_job(asked, Vocabulary(main), 1024, drafts="model", slots=3)
    job.tokens.append(tokens[-1])
    return Slot(slot, held=tokens[:-1], job=job)


def guess(drafter: Drafter, slots: list[Slot], steps: int = 12) -> list[list[int]]:
    """What each answer is guessed to go on with, once the draft has had some steps to catch up."""
    found: list[list[int]] = [[] for _ in slots]
    for _ in range(steps):
        drafter.guess(slots, [s for s in slots if s.job is not None])
        for index, slot in enumerate(slots):
            if slot.job is not None and slot.job.draft is not None and not found[index]:
                found[index] = slot.job.draft.guess(slot.job.tokens, MOST)
    return found


def words(seed: int, count: int) -> list[int]:
    return [3 + (seed * 7919 + n * n * 31 + n * 17) % 500 for n in range(count)]


@pytest.mark.parametrize("shape", [SMALL, replace(SMALL, architecture="gemma3", window=32, layers=7)], ids=["whole", "windows"])
def test_a_draft_that_went_back_guesses_like_one_that_never_went_on(main: Any, make: Make, shape: Shape):
    drafter, past = make(shape), words(1, 300)
    # Nothing is shown by guesses that do not depend on what was said.
    assert guess(drafter, [answer(main, words(6, 20) + past[-2:])]) != guess(drafter, [answer(main, words(7, 20) + past[-2:])])
    # Each with the steps of 64 tokens that what it adds takes.
    turns = [
        (past, 5),
        (past[:299] + words(2, 5), 1),
        (past[:200] + words(3, 90), 2),
        (past[:40] + words(4, 2), 1),
        (past[:3], 1),
        (words(5, 130), 3),
    ]
    for tokens, steps in turns:
        found = guess(drafter, [answer(main, tokens)], steps)
        assert len(found[0]) == MOST // 2
        assert found == guess(make(shape), [answer(main, tokens)])


@pytest.mark.parametrize("piece", [64, 256])
def test_answers_to_one_prompt_share_it(main: Any, make: Make, piece: int):
    drafter, prompt = make(cells=256, micro_batch=piece), words(1, 200)
    slots = [answer(main, [*prompt, 40 + n], n) for n in range(3)]
    found = guess(drafter, slots)
    # Three times the prompt would not go into 256 cells.
    assert found == [guess(make(), [answer(main, [*prompt, 40 + n])])[0] for n in range(3)]


def test_without_cells_there_is_no_guess_and_the_others_have_theirs(main: Any, make: Make):
    drafter = make(cells=256)
    slots = [answer(main, words(n + 1, 90 + 10 * n), n) for n in range(3)]
    found = guess(drafter, slots)
    assert [len(f) for f in found] == [MOST // 2, MOST // 2, 0]
    # Whoever has ended leaves the cells to those who go on; the third tries again some time.
    slots[0].job = slots[1].job = None
    assert len(guess(drafter, slots, steps=300)[2]) == MOST // 2


def test_words_that_only_one_of_the_two_has_are_neither_read_nor_guessed(main: Any, make: Make):
    fewer, more = make(replace(SMALL, vocabulary=500)), make(replace(SMALL, vocabulary=600))
    known, unknown = words(1, 20), [*words(1, 20), 505, 7]
    assert guess(fewer, [answer(main, unknown)]) == [[]]
    assert guess(fewer, [answer(main, known)])[0]
    for seed in range(40):
        assert all(t < 512 for t in guess(more, [answer(main, words(seed, 20))])[0])


def test_a_guess_ends_where_the_answer_or_the_context_does(main: Any, make: Make):
    drafter = make(context_length=64)
    for length, most in ((60, 4), (62, 2), (64, 0), (70, 0)):
        assert len(guess(drafter, [answer(main, words(1, length))])[0]) == most
    short = answer(main, words(1, 20))
    assert short.job is not None
    short.job.limit = 3
    assert len(guess(drafter, [short])[0]) == 1


def test_after_guesses_in_vain_it_rests_and_a_good_one_ends_that():
    draft = ModelDraft()

    def asked(steps: int) -> list[int]:
        return [draft.due(MOST) for _ in range(steps)]

    for size in (4, 2, 1):
        assert asked(1) == [size]
        draft.judged(size, 0)
    assert asked(4) == [0, 0, 1, 1]
    draft.judged(1, 0)
    assert asked(5) == [0, 0, 0, 0, 1]
    draft.judged(1, 1)
    assert asked(2) == [2, 2]
    for _ in range(3):
        draft.offer(10, [])
    assert asked(3) == [0, 0, 2]
    draft.offer(10, [5, 6])
    assert draft.guess(range(11), MOST) == []
    draft.offer(10, [5, 6])
    assert draft.guess(range(10), 1) == [5]
