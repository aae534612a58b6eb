"""Pooled inputs: packs as many as fit into one batch, one sequence each, and gives back a vector per input."""

from collections import deque
from typing import Any

import numpy as np

from corral_server.engine.batch import Batch
from corral_server.engine.jobs import EmbedJob, RefusedError
from corral_server.engine.library import FloatArray, L, floats_at, get_embeddings_seq


class EmbeddingLoop:
    def __init__(self, context: Any, batch: Batch, *, sequences: int, width: int, rank: bool) -> None:
        self._context = context
        self._batch = batch
        self._sequences = sequences
        self._width = 1 if rank else width
        self._rank = rank
        self.jobs: deque[EmbedJob] = deque()

    def add(self, job: EmbedJob) -> None:
        self.jobs.append(job)

    def cancel(self, job_id: int) -> None:
        self.jobs = deque(j for j in self.jobs if j.id != job_id)

    def step(self) -> list[dict[str, Any]]:
        """One batch over the oldest jobs; the events of those that are complete or failed."""
        self._batch.clear()
        taken: list[EmbedJob] = []
        for job in self.jobs:
            while job.next < len(job.inputs) and len(taken) < self._sequences and len(job.inputs[job.next]) <= self._batch.room:
                self._batch.add(job.inputs[job.next], 0, len(taken), outputs="all")
                job.next += 1
                taken.append(job)
            if job.next < len(job.inputs):
                break
        memory = L.llama_get_memory(self._context)
        if memory:
            L.llama_memory_clear(memory, True)
        code = self._batch.decode(self._context)
        if code != 0:
            return self._failed(taken, "decode_failed", f"llama.cpp could not evaluate the input (code {code})")
        broken = []
        for sequence, job in enumerate(taken):
            vector = self._vector(sequence, normalise=job.normalise)
            if np.isfinite(vector).all():
                job.results.append(vector.tobytes())
            else:
                broken.append(job)
        events = self._failed(
            broken, "broken_embedding", "the model evaluated to values that are no numbers (NaN or infinite): its file is broken", retry=False
        )
        while self.jobs and len(self.jobs[0].results) == len(self.jobs[0].inputs):
            job = self.jobs.popleft()
            count = sum(len(i) for i in job.inputs)
            events.append({"i": job.id, "f": "stop", "vectors": [np.frombuffer(r, np.float32).tolist() for r in job.results], "u": {"prompt": count}})
        return events

    def _failed(self, jobs: list[EmbedJob], code: str, message: str, *, retry: bool = True) -> list[dict[str, Any]]:
        """They are answered with an error and are done."""
        failed = {id(j): j for j in jobs}
        self.jobs = deque(j for j in self.jobs if id(j) not in failed)
        error = RefusedError(500, code, message, details={"retry": retry})
        return [error.event(j.id) for j in failed.values()]

    def _vector(self, sequence: int, *, normalise: bool) -> FloatArray:
        vector = floats_at(get_embeddings_seq(self._context, sequence), self._width)
        if normalise and not self._rank:
            norm = float(np.linalg.norm(vector))
            vector = vector / norm if norm > 0 else vector
        return vector.astype(np.float32)
