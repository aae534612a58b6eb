"""The shell around the life cycle: downloads, forks engines, watches them, keeps time. Everything that decides is in `lifecycle`.

It never calls llama.cpp. One event loop; whoever changes the life cycle here wakes those who poll for it.
"""

import asyncio
import contextlib
import logging
import os
import time
from typing import Any

from corral_server import machine
from corral_server.decoding import Decoding
from corral_server.download.keep import keys
from corral_server.download.needed import Files, download_needed
from corral_server.download.warm import warm
from corral_server.engine.plan import thread_count
from corral_server.engine_client import EngineClient, EngineError
from corral_server.kept_responses import KeptResponses
from corral_server.lifecycle import Lifecycle, Problem, Refusal, State, Wake
from corral_server.metrics import Totals
from corral_server.nursery import Child, Nursery
from corral_server.reasons import (
    ENGINE_CRASHED,
    LOAD_FAILED,
    LOAD_TIMEOUT,
    OUT_OF_MEMORY,
    Failure,
)
from corral_server.rendering import Rendering
from corral_server.settings import Settings
from corral_server.spec import ServerSpec
from corral_server.states_folder import StatesFolder

log = logging.getLogger("corral.server")
_STOP_TIMEOUT = 5.0
_CRASHES = 3
_CRASH_WINDOW = 120.0
_MEASURE_EVERY = 15.0
_CACHE_EVERY = 60.0
_KEPT_WHEN_WITHIN = 5.0
"""Seconds that the last load took."""
_WORTH_SAYING = 1 << 20
"""A change of measured memory under this is not news: each one wakes everybody who polls."""


class Supervisor:
    def __init__(self, settings: Settings, spec: ServerSpec, raw_engine: dict[str, Any]) -> None:
        self.settings = settings
        self.spec = spec
        self.life = Lifecycle()
        self.totals = Totals()
        self.threads = thread_count(spec.engine.threads, machine.cpu_limit(), machine.physical_cores())
        self.nursery = Nursery(dict(settings.environ), self.threads)
        self.rendering = Rendering(self.nursery)
        self.decoding = Decoding(self.nursery, spec.engine.slots)
        self.engine: EngineClient | None = None
        self.path = ""
        self._files: Files | None = None
        self.states = StatesFolder(settings.cache_dir, settings.pod_uid)
        self.responses = KeptResponses(self.states.responses, settings.pod_uid)
        self._raw_engine = raw_engine
        self._changed = asyncio.Event()
        self._seen = self.life.version
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._engine_lock = asyncio.Lock()
        self._crashes: list[float] = []
        self._load_task: asyncio.Task[None] | None = None
        self._keeps = True
        self._keepable = ""

    # --- start and end

    async def start(self) -> None:
        self.states.claim()
        await self.nursery.start()
        self._spawn(self._fetch())
        if self.settings.cache_shared:
            self._spawn(self._watch_cache())

    async def stop(self, grace: float) -> None:
        """Let streams finish, then end the engine and everything that was started."""
        self.life.stop()
        self.notify()
        until = time.monotonic() + grace
        while self.life.in_flight and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed(self.life.version), until - time.monotonic())
        if self.life.in_flight:
            self.end_streams()
            await asyncio.sleep(0.1)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end_engine()
        await self.rendering.stop()
        await self.nursery.stop()
        self.states.release()

    # --- waiting for changes

    def notify(self) -> None:
        """Wake those who wait, when the version has grown; re-arm the timer for drains."""
        if self.life.version != self._seen:
            self._seen = self.life.version
            self._changed.set()
            self._changed = asyncio.Event()
        if self.life.admitting and self.engine is not None:
            self.engine.refusal = None
        self._arm()

    async def changed(self, version: int) -> None:
        while self.life.version == version:
            await self._changed.wait()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.life.due(time.time())
        if due.end_streams:
            self.end_streams()
        if due.next_at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(due.next_at - time.time(), 0.001), self._tick)
        if self.life.version != self._seen:
            self._seen = self.life.version
            self._changed.set()
            self._changed = asyncio.Event()

    def _tick(self) -> None:
        self._timer = None
        self.notify()

    # --- requests

    def admit(self) -> bool:
        admitted = self.life.admit(time.time())
        self.notify_cheaply()
        return admitted

    def release(self) -> None:
        self.life.release(time.time())
        self.notify_cheaply()

    def notify_cheaply(self) -> None:
        if self.life.version != self._seen:
            self.notify()

    def end_streams(self) -> None:
        """End what is still being answered: the turn is over, or the server's time is."""
        if self.engine is not None:
            code, why = (
                ("shutting_down", "the server is shutting down") if self.life.stopping else ("turn_ended", "this model's turn on its device ended")
            )
            self.engine.end_all(EngineError(503, code, why))

    @property
    def queued(self) -> int:
        return self.engine.queued if self.engine is not None else 0

    # --- the file

    async def _fetch(self) -> None:
        wait = 1.0
        while True:
            begin = time.monotonic()
            self.life.downloading()
            self.notify()

            def progress(value: float) -> None:
                self.life.progressed(value)
                self.notify_cheaply()

            try:
                files = await download_needed(self.spec, self.settings, progress)
            except Failure as failure:
                log.warning("download failed: %s", failure)
                self.life.download_failed(Problem(failure.reason, failure.message, failure.retry, time.time()))
                self.notify()
                if not failure.retry:
                    return
            else:
                self._files, file = files, files.model
                self.path = file.path
                await self._look_into_cache()
                self.life.residue = self._residue()
                self.life.downloaded({"bytes": file.bytes, "path": file.path}, time.monotonic() - begin)
                self.notify()
                return
            await asyncio.sleep(wait)
            wait = min(wait * 2, 300.0)

    async def _watch_cache(self) -> None:
        """Others fill and empty a shared cache too."""
        while True:
            await self._look_into_cache()
            await asyncio.sleep(_CACHE_EVERY)

    async def _look_into_cache(self) -> None:
        if self.settings.cache_shared:
            with contextlib.suppress(OSError):
                self.life.cache_has(await asyncio.to_thread(keys, self.settings.cache_dir))
            self.notify_cheaply()

    def warm(self) -> Refusal | None:
        """Read the files into the page cache, ahead of a wake."""
        if self._files is None:
            return Refusal("WrongState", f"the server is {self.life.state}; it has no file yet")
        for file in self._files.all:
            self._spawn(asyncio.to_thread(warm, file.path))
        return None

    # --- the engine

    def wake(self, order: Wake) -> Refusal | bool:
        answer = self.life.wake(order)
        if answer is True:
            self._crashes.clear()
            for file in self._files.all if self._files is not None else ():
                if file.use is not None:
                    file.use.touch()
            self._load_task = self._spawn(self._load(order))
        self.notify()
        return answer

    async def sleep(self) -> Refusal | None:
        """End the engine, also one that still loads; returns after its process is gone."""
        refusal = self.life.may_sleep()
        if refusal is not None or self.life.state not in (State.DRAINING, State.LOADING):
            return refusal
        if self.life.ending or self.life.state is State.LOADING:
            # Whoever loads sees that it is not wanted any more, and reports it asleep.
            self.life.sleep_started()
            if self.life.state is State.LOADING and self.engine is not None:
                self.engine.child.kill()
            while self.life.ending:
                await self.changed(self.life.version)
            return None
        self.life.sleep_started()
        await self._end_engine(keep=True)
        await self.rendering.stop()
        self.life.asleep(self._residue())
        self.notify()
        return None

    async def _load(self, order: Wake) -> None:
        files = self._files
        assert files is not None  # noqa: S101  nobody wakes without them
        begin = time.monotonic()
        kills = machine.oom_kills()
        try:
            async with self._engine_lock:
                child = await self._fork()
            self.engine = EngineClient(child, self.totals)
            if self.life.ending:
                child.kill()
            started = time.monotonic()
            child.channel.send(
                {
                    "path": self.path, "engine": self._raw_engine, "devices": list(order.devices), "split": list(order.split),
                    "deviceKind": order.device_kind, "states": str(self.states.path), "threads": self.threads,
                    "draft": files.draft.path if files.draft is not None else "",
                    "projector": files.projector.path if files.projector is not None else "",
                    "adapters": [{"name": a.name, "path": f.path} for a, f in zip(self.spec.engine.adapters, files.adapters, strict=True)],
                }
            )  # fmt: skip
            # The renderer starts while the engine loads.
            await self.rendering.start()
            loaded = await self._await_loaded(child, kills)
        except Failure as failure:
            self._keepable = ""
            if self.life.ending:
                await self._end_engine()
                await self.rendering.stop()
                self.life.asleep(self._residue())
                self.notify()
                return
            log.warning("load failed: %s", failure)
            await self._end_engine()
            await self.rendering.stop()
            self.life.load_failed(Problem(failure.reason, failure.message, failure.retry, time.time()), self._residue())
            self.notify()
            return
        total = time.monotonic() - begin
        # A file that has proved good, and quick to open: until it is open the zygote does nothing else.
        self._keepable = self.path if self._keeps and loaded["keepable"] and total < _KEPT_WHEN_WITHIN else ""
        timings = {"start": started - begin, **loaded["timings"], "total": total}
        self.life.loaded(loaded["model"], self._memory(loaded["memory"]), timings)
        log.info("loaded in %.2f s", total)
        if "warning" in loaded["model"]:
            log.warning("%s", loaded["model"]["warning"])
        self.notify()
        self._spawn(self._serve(child, order))
        self._spawn(self._measure(child, loaded["memory"]))

    async def _fork(self) -> Child:
        if self._keepable:
            try:
                return await self.nursery.fork("engine", keep=self._keepable)
            except Failure as failure:
                log.warning("%s; from now on the engine opens the model by itself", failure)
                self._keeps = False
        return await self.nursery.fork("engine")

    async def _measure(self, child: Child, buffers: dict[str, int]) -> None:
        """Keep the measured memory true while the engine lives: it grows with the prompts it has seen."""
        while not child.exited.done():
            await asyncio.wait({child.exited}, timeout=_MEASURE_EVERY)
            if self.engine is None or self.engine.child is not child or self.life.state not in (State.LOADED, State.DRAINING):
                continue
            memory = self._memory(buffers)
            if abs(memory["total"] - self.life.memory.get("total", 0)) >= _WORTH_SAYING:
                self.life.measured(memory)
                self.notify_cheaply()

    async def _await_loaded(self, child: Child, kills: int) -> dict[str, Any]:
        limit = self.settings.load_timeout
        while True:
            try:
                message = await asyncio.wait_for(child.channel.next(), limit)
            except TimeoutError:
                child.kill()
                raise Failure(LOAD_TIMEOUT, f"the load made no progress for {limit:.0f} s") from None
            if message is None:
                code = await child.exited
                if code == -9 and machine.oom_kills() > kills:
                    raise Failure(OUT_OF_MEMORY, "the kernel killed the engine for want of memory while it loaded")
                raise Failure(ENGINE_CRASHED, f"the engine ended with code {code} while it loaded: {child.last_words() or 'it said nothing'}")
            if message["t"] == "progress":
                self.life.progressed(message["value"])
                self.notify_cheaply()
            elif message["t"] == "failed":
                raise Failure(message["reason"], message["message"])
            elif self.life.ending:
                raise Failure(LOAD_FAILED, "the load was called off")
            elif message["t"] == "loaded":
                return dict(message)

    async def _serve(self, child: Child, order: Wake) -> None:
        """Hand out the engine's events until it is gone, wanted or not."""
        engine = self.engine
        assert engine is not None  # noqa: S101  set before the load
        await child.channel.hand_to(engine.dispatch)
        child.channel.close()
        code = await child.exited
        if self.engine is not engine:
            return
        self.engine = None
        engine.fail_all(EngineError(500, "engine_crashed", "the engine process ended while it worked on this request", retry=False))
        await self._restart(child, code, order)

    async def _restart(self, child: Child, code: int, order: Wake) -> None:
        """An engine that died by itself is started again on the same devices, with back-off; a crash loop is reported and left asleep."""
        message = f"the engine ended with code {code}: {child.last_words() or 'it said nothing'}"
        log.error("%s", message)
        self.totals.crashes += 1
        now = time.monotonic()
        self._crashes = [t for t in self._crashes if now - t < _CRASH_WINDOW] + [now]
        problem = Problem(ENGINE_CRASHED, message, retry=True, at=time.time())
        if len(self._crashes) >= _CRASHES or self.life.state is not State.LOADED or self.life.stopping:
            await self.rendering.stop()
            self.life.load_failed(problem, self._residue())
            self.notify()
            return
        self.life.error = problem
        self.life.loading()
        self.notify()
        await asyncio.sleep(0.2 * 4 ** (len(self._crashes) - 1))
        await self._load(order)

    async def _end_engine(self, *, keep: bool = False) -> None:
        """`keep`: what was answered last is kept for the next load."""
        engine, self.engine = self.engine, None
        if engine is None:
            return
        engine.child.channel.send({"t": "stop", "keep": keep})
        try:
            await asyncio.wait_for(asyncio.shield(engine.child.exited), _STOP_TIMEOUT)
        except TimeoutError:
            engine.child.kill()
            await engine.child.exited
        engine.fail_all(EngineError(500, "engine_stopped", "the engine was stopped", retry=False))
        engine.child.channel.close()

    # --- memory

    def _pids(self) -> list[int]:
        pids = [os.getpid(), self.nursery.pid, self.rendering.pid, self.engine.child.pid if self.engine is not None else None]
        return [p for p in pids if p]

    def _residue(self) -> int:
        return sum(machine.anonymous_bytes(p) for p in self._pids())

    def _memory(self, buffers: dict[str, int]) -> dict[str, int]:
        total = self._residue()
        # Weights are mapped: page cache, not anonymous memory, unless they were copied into another order.
        other = max(total - buffers["kvCache"] - buffers["compute"] - buffers["repacked"], 0)
        return {**buffers, "other": other, "total": total}

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the supervisor failed", exc_info=task.exception())
