"""Work beside the inference thread: what may take long and does not touch the context (tokenising, compiling and searching grammars).

llama.cpp frees the interpreter lock in each call, so this runs while the next batch is decoded. Results are handed over on the inference thread only.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_THREADS = 2


class Aside:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="aside")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="aside-long")
        self._finished: deque[tuple[Future[Any], Callable[[Future[Any]], None]]] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.waiting = 0

    def fileno(self) -> int:
        """Readable when something has finished, so that the loop can wait for it and for messages at once."""
        return self._fd

    def run(self, work: Callable[[], Any], then: Callable[[Future[Any]], None], *, long: bool = False) -> None:
        """Do `work` in a thread; `then` is called by `collect`. `long`: one after the other, in the way of nothing else."""
        self.waiting += 1

        def done(future: Future[Any]) -> None:
            self._finished.append((future, then))
            os.eventfd_write(self._fd, 1)

        (self._long if long else self._pool).submit(work).add_done_callback(done)

    def collect(self) -> None:
        """Hand over what has finished."""
        if not self._finished:
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        while self._finished:
            future, then = self._finished.popleft()
            self.waiting -= 1
            then(future)
