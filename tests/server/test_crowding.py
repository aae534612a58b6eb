"""How many threads a decode gets where several engines want the same processors: the rule in virtual time, and an engine beside others."""

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.server.harness import Server
from tests.support.models import smollm2

from corral_server.engine.crowding import Crowding

WINDOW = 0.25


class Machine:
    """Engines that work all the time on so many processors, which are shared fairly."""

    def __init__(self, processors: int, engines: int, most: int) -> None:
        self.processors = processors
        self.engines = [Crowding(most, random.Random(seed).random) for seed in range(engines)]
        self.now = 0.0

    def run(self, seconds: float, working: int) -> list[int]:
        """Threads of all that work, window by window."""
        seen = []
        for _ in range(int(seconds / WINDOW)):
            self.now += WINDOW
            counts = [e.count for e in self.engines[:working]]
            wanted = sum(counts)
            for engine, count in zip(self.engines[:working], counts, strict=True):
                missing = count * max(0.0, 1 - self.processors / wanted)
                engine.saw(self.now, missing, max(0.0, self.processors - wanted))
            seen.append(sum(e.count for e in self.engines[:working]))
        return seen


@pytest.mark.parametrize(("processors", "engines"), [(2, 2), (4, 2), (4, 3), (4, 4), (16, 2), (16, 5), (64, 3)])
def test_engines_share_the_processors(processors: int, engines: int):
    machine = Machine(processors, engines, processors)
    machine.run(30, engines)
    after = machine.run(60, engines)
    # Seldom too many, and never few for long.
    assert sum(total > processors for total in after) <= len(after) // 10
    assert sum(total < processors - engines for total in after) <= len(after) // 10
    assert min(after) >= engines


@pytest.mark.parametrize("processors", [2, 4, 16])
def test_who_is_left_alone_has_all_of_them_again(processors: int):
    machine = Machine(processors, 2, processors)
    machine.run(30, 2)
    assert machine.run(40, 1)[-1] == processors
    assert machine.run(2, 2)[-1] <= processors


def test_alone_beside_clients_it_keeps_what_it_has():
    alone = Crowding(2, lambda: 0.5)
    assert {alone.saw(t * WINDOW, 0.3, 0.0) for t in range(400)} == {2}


def test_a_processor_that_is_half_in_use_is_left_alone():
    beside = Crowding(2, lambda: 0.5)
    assert beside.saw(0, 1.0, 0.0) == 1
    assert {beside.saw(10 + t * WINDOW, 0.0, 0.5) for t in range(400)} == {1}
    assert beside.saw(200, 0.0, 0.7) == 2


@pytest.mark.parametrize(("most", "free", "count"), [(2, 1.1, 1), (2, 0.0, 1), (2, 1.9, 2), (16, 16.0, 16), (16, 7.6, 8), (1, 2.0, 1)])
def test_it_begins_with_what_was_free_before(most: int, free: float, count: int):
    assert Crowding(most, lambda: 0.5).begins(free, lambda: 0) == count


def test_it_begins_with_what_is_free_now_where_little_was():
    assert Crowding(2, lambda: 0.5).begins(0.4, lambda: 2) == 2
    assert Crowding(16, lambda: 0.5).begins(12.0, lambda: pytest.fail("enough was free")) == 12


def test_a_long_step_gets_what_is_free_by_then_and_never_less():
    crowding = Crowding(4, lambda: 0.5)
    assert crowding.begins(1.0, lambda: 1) == 1
    assert [crowding.lasts(free) for free in (0, 2, 1, 8)] == [1, 2, 2, 4]


def test_what_is_too_many_again_and_again_is_tried_less_often():
    engine, raised, now = Crowding(2, lambda: 0.5), [], 0.0
    while now < 120:
        now += WINDOW
        before = engine.count
        if engine.saw(now, *((1.0, 0.0) if before == 2 else (0.0, 1.0))) > before:
            raised.append(now)
    pauses = [b - a for a, b in itertools.pairwise(raised)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 3
    assert 16 <= pauses[-1] < 17


@pytest.mark.model
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor has room for one thread anyway")
def test_an_engine_beside_others_takes_fewer_threads(tmp_path: Path):
    most = len(os.sched_getaffinity(0))
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(most)]
    try:
        with Server(smollm2().as_uri(), tmp_path, engine={"contextLength": 512, "threads": most}) as server:
            server.load()
            for _ in range(20):
                server.http.post("/v1/completions", json={"prompt": "The sea", "max_tokens": 8, "ignore_eos": True}).raise_for_status()
                line = next(x for x in server.http.get("/metrics").text.splitlines() if x.startswith("corral_server_threads "))
                if float(line.split()[1]) < most:
                    break
            else:
                pytest.fail(f"still {most} threads, beside as many processes that never rest")
    finally:
        for hog in hogs:
            hog.send_signal(signal.SIGKILL)
            hog.wait()
