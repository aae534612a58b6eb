"""Real processes really killed: an engine, a supervisor, `corral up` itself. Requests are answered all the same, and nothing is left behind."""

import asyncio
import os
import signal

import httpx2 as httpx
import openai
import psutil
import pytest
from tests.local.herd import ROOM, alive, stream

ALPACA, BISON = "I am alpaca.", "I am bison."


async def test_a_killed_supervisor_is_started_again_and_nothing_is_committed_twice(herd):
    herd.pool(ROOM[1])
    herd.model("a", ALPACA)
    herd.start()
    await herd.ready("a")
    assert await herd.ask("a") == ALPACA
    (pod,) = herd.pods("a")
    family = psutil.Process(pod["pid"]).children(recursive=True)
    os.kill(pod["pid"], signal.SIGKILL)
    assert await herd.ask("a") == ALPACA
    assert alive(family) == []
    (again,) = herd.pods("a")
    assert again["restarts"] == 1
    assert again["pid"] != pod["pid"]
    await herd.until(lambda: herd.loaded() == {"a"})


async def test_a_killed_engine_is_loaded_again_by_the_next_request(herd):
    herd.pool(ROOM[1])
    herd.model("a", ALPACA)
    herd.start()
    await herd.ready("a")
    assert await herd.ask("a") == ALPACA
    herd.engine("a").kill()
    for _ in range(50):
        try:
            assert await herd.ask("a") == ALPACA
            break
        except openai.InternalServerError:  # sent to the engine in its last moment, or while the model backs off
            await asyncio.sleep(0.3)
    else:
        pytest.fail("it never answered again")
    assert [pod["restarts"] for pod in herd.pods("a")] == [0]


async def test_an_engine_killed_in_the_middle_of_a_stream_ends_it_with_an_error_not_a_hang(herd):
    herd.pool(ROOM[1])
    herd.model("a", "I am alpaca, and I go on.", loop=True)
    herd.start()
    await herd.ready("a")
    async with herd.openai() as client:
        answer = stream(client, "a", max_tokens=60000)
        await anext(answer)
        herd.engine("a").kill()
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            async for _ in answer:
                pass


async def test_a_killed_corral_up_leaves_no_process_and_its_successor_serves(herd):
    herd.pool(ROOM[2])
    herd.model("a", ALPACA)
    herd.model("b", BISON)
    herd.start()
    await herd.ready("a", "b")
    assert await asyncio.gather(herd.ask("a"), herd.ask("b")) == [ALPACA, BISON]
    family = herd.family()
    assert len(family) >= 5  # the warden, two supervisors, two engines, ...
    herd.kill()
    await herd_is_gone(family)
    herd.start()
    await herd.ready("a", "b")
    assert await herd.ask("a") == ALPACA


async def test_a_corral_up_that_is_killed_while_a_model_loads_leaves_no_process(herd):
    herd.pool(ROOM[1])
    herd.model("a", ALPACA)
    herd.start()
    await herd.ready("a")
    asking = asyncio.create_task(herd.ask("a"))
    await herd.until(lambda: herd.pods("a"), "a to get a process")
    family = herd.family()
    herd.kill()
    await asyncio.gather(asking, return_exceptions=True)
    await herd_is_gone(family)


async def test_a_stopped_corral_up_finishes_its_stream_and_leaves_nothing(herd):
    herd.pool(ROOM[1])
    herd.model("a", "I am alpaca, and I go on.", loop=True)
    herd.start()
    await herd.ready("a")
    async with herd.openai() as client:
        answer = stream(client, "a", max_tokens=300)
        pieces = [await anext(answer)]
        family = herd.family()
        herd.process.send_signal(signal.SIGTERM)
        pieces += [piece async for piece in answer]
    assert len(pieces) > 100
    assert await asyncio.to_thread(herd.process.wait, 30) == 0
    await herd_is_gone(family)
    assert list((herd.run_dir / "processes").iterdir()) == []
    assert not (herd.run_dir / "admin.json").exists()


async def test_a_second_corral_up_of_the_same_run_directory_is_refused(herd):
    herd.model("a", ALPACA)
    herd.start()
    done = await asyncio.to_thread(herd.corral, "up", "-f", str(herd.folder), "--port", "0")
    assert done.returncode == 1
    assert f"another corral up (pid {herd.process.pid}, {herd.endpoint}) owns {herd.run_dir}" in done.stderr


async def herd_is_gone(family):
    for _ in range(200):
        if not alive(family):
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"still there: {[process.cmdline() for process in alive(family)]}")
