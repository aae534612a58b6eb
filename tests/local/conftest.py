"""A `corral up` per test, its estimates shared: they are asked for once per model file and settings."""

import shutil
import tempfile
from pathlib import Path

import pytest
from tests.local.herd import ROOM, SAYS, Herd, alive


@pytest.fixture(scope="session")
def estimates():
    folder = Path(tempfile.mkdtemp(prefix="corral-estimates-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def herd(tmp_path, estimates):
    """Not started; whatever the test leaves is ended, and must be gone afterwards."""
    found = Herd(tmp_path, estimates)
    yield found
    end(found)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, estimates):
    """Instances over the models a, b and c with room for so many of them, each started once for all tests of a file; what they did is counted."""
    started: dict[int, Herd] = {}

    async def with_room_for(limit: int) -> Herd:
        if limit not in started:
            herd = started[limit] = Herd(tmp_path_factory.mktemp(f"room-for-{limit}"), estimates)
            for name, text in SAYS.items():
                herd.model(name, text)
            herd.pool(ROOM[limit])
            herd.start()
        await started[limit].ready(*SAYS)
        return started[limit]

    yield with_room_for
    for herd in started.values():
        end(herd)


def end(herd: Herd) -> None:
    if herd.process is None:
        return
    left = herd.family() if herd.process.poll() is None else []
    code = herd.stop()
    assert alive(left) == []
    assert code in {0, -9}, herd.log.read_text()
