"""What newcomers share when they look at the same devices: never more than what is the same for all of them."""

from __future__ import annotations

from itertools import product

from tests.domain.builders import NOW, asleep, cluster, key, loaded, model

from corral.domain.draft import Draft
from corral.domain.eviction import Purpose, prospect
from corral.domain.model import Pool
from corral.domain.plan import Evict

AT = (key("n1"),)


def fleet():
    state = cluster(
        models=[
            model("busy", 4),
            model("idle", 4),
            model("floor", 4, min_replicas=1),
            model("important", 4, priority=1),
            model("own", 4, max_replicas=2),
        ],
        replicas=[
            loaded("busy-0", "busy", 2, in_flight=1, turn_started=NOW - 100),
            loaded("idle-0", "idle", 4),
            loaded("floor-0", "floor", 4, used=500),
            loaded("important-0", "important", 4),
            loaded("own-0", "own", 4),
            asleep("claim-0", "idle", namespace_claim=True),
        ],
    )
    state.put_pool(Pool("careful", policy="CostAware"))
    return state.snapshot()


NEWCOMERS = [
    model("new", 4),
    model("lesser", 4, priority=-1),
    model("greater", 4, priority=1),
    model("pinned", 4, pinned=True),
    model("elsewhere", 4, namespace="other"),
    model("careful", 4, pool="careful"),
    model("own", 4, max_replicas=2),
]
QUESTIONS = list(product(NEWCOMERS, Purpose, (False, True), (False, True)))


def answers(drafts):
    return [
        prospect(draft, newcomer, AT, purpose, end_turns=end_turns, delete=delete)
        for draft, (newcomer, purpose, end_turns, delete) in zip(drafts, QUESTIONS, strict=True)
    ]


def test_each_newcomer_sees_what_it_would_see_alone():
    snapshot = fleet()
    shared = Draft(snapshot, NOW)
    alone = answers([Draft(snapshot, NOW) for _ in QUESTIONS])
    assert answers([shared] * len(QUESTIONS)) == alone
    assert len(set(map(str, alone))) > len(NEWCOMERS), "the questions differ"


def test_what_was_ordered_meanwhile_counts():
    snapshot = fleet()
    shared = Draft(snapshot, NOW)
    before = answers([shared] * len(QUESTIONS))

    def ordered(draft):
        draft.act(Evict("m/idle", "Evicted", "", "m/idle-0", "m/new", NOW))
        return draft

    after = answers([ordered(shared)] * len(QUESTIONS))
    assert after == answers([ordered(Draft(snapshot, NOW)) for _ in QUESTIONS])
    assert after != before
