"""Ways to break the system, one per rule that keeps an invariant. Each is switched on around a run, and the invariants have to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from corral.domain import eviction, placement
from corral.domain.model import Device
from corral.domain.plan import Refusal
from corral.simulate.world import World

Mutation = Callable[[World], None]


def nothing(_: World) -> None:
    pass


@contextmanager
def evict_a_busy_one() -> Iterator[Mutation]:
    real = eviction._in_use

    def in_use(draft, replica, model, *, end_turns):
        found = real(draft, replica, model, end_turns=end_turns)
        return None if isinstance(found, Refusal) and found.reason in ("InFlight", "InItsTurn") else found

    with patch.object(eviction, "_in_use", in_use):
        yield nothing


@contextmanager
def forget_the_margin() -> Iterator[Mutation]:
    with patch.object(Device, "usable", property(lambda self: self.capacity)):
        yield nothing


@contextmanager
def lose_an_expectation() -> Iterator[Mutation]:
    def mutate(world: World) -> None:
        world.on_operator = lambda operator: setattr(operator, "forget_orders", True)

    yield mutate


@contextmanager
def drop_a_waiter() -> Iterator[Mutation]:
    def mutate(world: World) -> None:
        world.on_gateway = lambda gateway: setattr(gateway, "drop_refused", True)

    yield mutate


@contextmanager
def skip_the_turn() -> Iterator[Mutation]:
    with patch.object(placement, "ended_turn", lambda *_, **__: None):
        yield nothing


@contextmanager
def let_a_floor_evict_a_floor() -> Iterator[Mutation]:
    real = eviction.refusal

    def refusal(draft, replica, newcomer, purpose, *, end_turns):
        as_if = eviction.Purpose.WAITER if purpose is eviction.Purpose.FLOOR else purpose
        return real(draft, replica, newcomer, as_if, end_turns=end_turns)

    with patch.object(eviction, "refusal", refusal):
        yield nothing


@contextmanager
def trust_an_old_epoch() -> Iterator[Mutation]:
    def mutate(world: World) -> None:
        world.cluster.trust_old_epochs = True

    yield mutate


@contextmanager
def load_before_the_grant() -> Iterator[Mutation]:
    def mutate(world: World) -> None:
        world.on_operator = lambda operator: setattr(operator, "skip_grant", True)

    yield mutate


@contextmanager
def evict_before_the_waiter_is_served() -> Iterator[Mutation]:
    real = eviction._in_use

    def in_use(draft, replica, model, *, end_turns):
        return real(draft, replace(replica, loaded_for=None, loaded_at=0.0), model, end_turns=end_turns)

    with patch.object(eviction, "_in_use", in_use):
        yield nothing


CAUGHT_BY: dict[Callable, set[int]] = {
    evict_a_busy_one: {2},
    forget_the_margin: {1},
    lose_an_expectation: {1},
    drop_a_waiter: {4},
    skip_the_turn: {5},
    let_a_floor_evict_a_floor: {6},
    trust_an_old_epoch: {1, 2},
    load_before_the_grant: {1},
    evict_before_the_waiter_is_served: {3, 6},
}
"""Which invariants may speak up first."""
