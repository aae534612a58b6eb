"""A fresh world for each test, with all that runs in it ended afterwards."""

from collections.abc import AsyncIterator, Callable

import pytest
from tests.support.fake_world import QUICK, Running, World

from corral.control.settings import ControlSettings


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.pool()
    yield made
    await made.close()


@pytest.fixture
async def lead(world: World) -> AsyncIterator[Callable[..., Running]]:
    """Start a controller on the world; every one that still runs at the end is dropped."""
    started: list[Running] = []

    def start(epoch: int = 1, *, settings: ControlSettings = QUICK) -> Running:
        started.append(Running(world, epoch, settings=settings))
        return started[-1]

    yield start
    for running in started:
        await running.drop()
