"""The inference loop: one thread, one context, one batch a step for all slots, one message a step to the supervisor.

Owns the slots and the queue. It must never block on anything but the supervisor's next message, and only when there is no work.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corral_server.channel import BlockingChannel, Message
from corral_server.engine import checkpoints, scheduling
from corral_server.engine.aside import Aside
from corral_server.engine.batch import Batch
from corral_server.engine.checkpoints import Checkpoint
from corral_server.engine.embedding import EmbeddingLoop
from corral_server.engine.jobs import Job, RefusedError, make_embed_job, make_job, prompt_tokens
from corral_server.engine.library import L, floats_at, get_logits_ith
from corral_server.engine.plan import EnginePlan
from corral_server.engine.sampling import Choice
from corral_server.engine.states import StateStore
from corral_server.engine.vocabulary import Vocabulary

_HEADROOM = 64
_QUICK = 16_384
"""Characters that are tokenised at once; a longer text is done beside the inference thread."""
_BEFORE_END = 4
_SPACING = 512


@dataclass(eq=False)
class Slot:
    """One sequence of the context. `held` are the tokens in its cells."""

    id: int
    held: list[int] = field(default_factory=list)
    job: Job | None = None
    last_used: int = 0
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether the next batch has something for it."""
        return self.job is not None and not self.job.searching


class StopLoop(Exception):  # noqa: N818  it is how the loop ends, not an error
    """The supervisor asked the engine to end."""


class Loop:
    def __init__(
        self, channel: BlockingChannel, model: Any, context: Any, plan: EnginePlan, vocabulary: Vocabulary, states: StateStore | None,
        scratch: Path | None = None, cache_limit: int = 256 << 20,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._context = context
        self._memory = L.llama_get_memory(context)
        self._plan = plan
        self._states = states
        self._scratch = scratch
        self._cache_limit = cache_limit
        self._aside = Aside()
        self._preparing: dict[int, bool] = {}
        self._unsaved: deque[Slot] = deque()
        self._vocabulary = vocabulary
        self._slots = [Slot(i) for i in range(plan.slots)]
        self._queue: deque[Job] = deque()
        self._batch = Batch(L.llama_n_batch(context))
        self._clock = 0
        self._rewind = scheduling.Rewind(
            window=max(L.llama_model_n_swa(model), 0), recurrent=bool(L.llama_model_is_recurrent(model) or L.llama_model_is_hybrid(model))
        )
        self._embedding = EmbeddingLoop(
            context, self._batch, sequences=plan.slots, width=L.llama_model_n_embd_out(model), rank=plan.pooling == "Rank"
        )
        self._forgets = self._rewind.recurrent or self._rewind.window > 0
        self._events: list[Message] = []
        self._decodes = 0
        self._busy_total = 0

    # --- the loop

    def run(self) -> None:
        try:
            while True:
                # What only waits for work beside this thread is no reason to turn in circles.
                busy = bool(self._embedding.jobs or any(s.runs for s in self._slots) or (self._queue and not self._aside.waiting))
                for message in self._channel.poll() if busy or self._unsaved else self._channel.receive(None, unless=self._aside.fileno()):
                    self._handle(message)
                self._aside.collect()
                if self._embedding.jobs:
                    self._events += self._embedding.step()
                self._admit()
                if any(s.runs for s in self._slots):
                    self._step()
                self._flush()
                if not busy and self._unsaved:
                    self._save(self._unsaved.popleft())
        except StopLoop:
            return

    def _handle(self, message: Message) -> None:
        kind = message["t"]
        if kind == "new":
            self._prepare(message, lambda: make_job(message, self._vocabulary, self._plan.context_length), self._queue.append)
        elif kind == "embed":
            self._prepare(message, lambda: make_embed_job(message, self._vocabulary, self._plan.context_length), self._embedding.jobs.append)
        elif kind == "cancel":
            self._cancel(message["id"])
        elif kind == "tokenize":
            self._prepare(message, lambda: self._tokens_event(message), self._events.append)
        elif kind == "detokenize":
            pieces = b"".join(self._vocabulary.piece(t, special=True) for t in message["tokens"])
            self._events.append({"i": message["id"], "f": "stop", "text": pieces.decode("utf-8", "replace")})
        elif kind == "slots":
            self._events.append({"i": message["id"], "f": "stop", "slots": [self._describe(s) for s in self._slots]})
        elif kind == "stop":
            raise StopLoop

    def _flush(self) -> None:
        if self._events:
            active = sum(s.job is not None for s in self._slots)
            self._channel.send({"t": "step", "e": self._events, "queued": len(self._queue), "active": active})
            self._events = []

    def _prepare(self, message: Message, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Make something of a request: here when it is short, beside this thread when it may take long."""
        number = message["id"]

        def finish(outcome: Callable[[], Any]) -> None:
            cancelled = self._preparing.pop(number, False)
            try:
                made = outcome()
            except RefusedError as error:
                self._events.append(error.event(number))
                return
            if not cancelled:
                then(made)

        if _is_quick(message):
            finish(work)
        else:
            self._preparing[number] = False
            self._aside.run(work, lambda future: finish(future.result))

    def _tokens_event(self, message: Message) -> Message:
        tokens = prompt_tokens(
            message["content"], self._vocabulary, add_special=message.get("add_special", False), parse_special=message.get("parse_special", True)
        )
        event: Message = {"i": message["id"], "f": "stop", "tokens": tokens}
        if message.get("with_pieces"):
            event["pieces"] = [list(self._vocabulary.piece(t, special=True)) for t in tokens]
        return event

    def _describe(self, slot: Slot) -> Message:
        job = slot.job
        return {"id": slot.id, "processing": job is not None, "tokens": len(slot.held), "generated": job.generated if job else 0}

    def _cancel(self, job_id: int) -> None:
        if job_id in self._preparing:
            self._preparing[job_id] = True
        self._queue = deque(j for j in self._queue if j.id != job_id)
        self._embedding.cancel(job_id)
        for slot in self._slots:
            if slot.job is not None and slot.job.id == job_id:
                if slot.job.searching:
                    slot.job.cancelled = True
                else:
                    self._free(slot)

    # --- slots and cells

    def _admit(self) -> None:
        waiting: list[Job] = []
        while self._queue:
            job = self._queue[0]
            if self._follows(job):
                waiting.append(self._queue.popleft())
                continue
            active = [len(s.job.tokens) for s in self._slots if s.job is not None]
            headroom = min(_HEADROOM, job.limit - job.generated)
            if not scheduling.fits(self._plan.cells, active, len(job.tokens), headroom):
                break
            choice = scheduling.choose_slot([self._view(s) for s in self._slots if s.job is None], job.tokens, self._rewind)
            if choice is None:
                break
            self._queue.popleft()
            reuses = job.cache and job.scores is None
            slot, kept = self._slots[choice[0].id], choice[1] if reuses else 0
            kept = self._go_back(slot, kept)
            if reuses:
                kept = self._share(slot, job, kept)
                kept = self._restore(slot, job, kept)
            slot.job = job
            if self._forgets and self._scratch is not None:
                job.pauses = scheduling.checkpoint_positions(job.prompt_count, max(_SPACING, self._plan.micro_batch), _BEFORE_END)
            if job.cached < 0:
                job.cached = kept
                job.started = time.perf_counter()
            self._make_room(len(job.tokens) - kept)
        self._queue.extendleft(reversed(waiting))

    def _follows(self, job: Job) -> bool:
        """Whether a request has to wait for the one that evaluates the same prompt for both."""
        if job.leader is None or not job.cache or self._rewind.recurrent:
            return False
        if job.leader in self._preparing or any(q.id == job.leader for q in self._queue):
            return True
        return any(s.job is not None and s.job.id == job.leader and len(s.held) < job.prompt_count for s in self._slots)

    def _share(self, slot: Slot, job: Job, kept: int) -> int:
        """Take the beginning of another sequence, busy or idle, by reference; returns what the slot then holds."""
        others = [self._view(s) for s in self._slots if s is not slot and s.held]
        source = scheduling.choose_source(others, job.tokens, self._rewind, kept)
        if source is None:
            return kept
        self._keep(slot, 0)
        L.llama_memory_seq_cp(self._memory, source.id, slot.id, 0, source.length)
        slot.held = self._slots[source.id].held[: source.length]
        return source.length

    def _restore(self, slot: Slot, job: Job, kept: int) -> int:
        """Bring back a saved state that holds more of the prompt than any sequence does."""
        found = self._states.find(job.tokens, self._rewind, kept) if self._states is not None else None
        if self._states is None or found is None:
            return kept
        entry, length = found
        busy = sum(len(s.held) for s in self._slots if s.job is not None)
        if busy + len(entry.tokens) > self._plan.cells:
            return kept
        self._keep(slot, 0)
        self._make_room(len(entry.tokens))
        restored = self._states.restore(self._context, slot.id, entry)
        if restored is None:
            L.llama_memory_seq_rm(self._memory, slot.id, -1, -1)
            return 0
        slot.held = list(entry.tokens)
        slot.checkpoints = restored
        return self._go_back(slot, length)

    def _save(self, slot: Slot) -> None:
        """Keep an idle sequence beyond this process; only while nobody is being answered."""
        if self._states is not None and slot.job is None and slot.held:
            self._states.save(self._context, slot.id, slot.held, slot.checkpoints)

    def _view(self, slot: Slot) -> scheduling.IdleSlot:
        oldest = self._oldest_position(slot) if self._rewind.window else 0
        return scheduling.IdleSlot(slot.id, slot.held, slot.last_used, oldest, [c.length for c in slot.checkpoints])

    def _oldest_position(self, slot: Slot) -> int:
        return int(L.llama_memory_seq_pos_min(self._memory, slot.id)) if slot.held else 0

    def _keep(self, slot: Slot, count: int) -> None:
        """Leave the first `count` tokens in the slot's cells."""
        if count < len(slot.held):
            L.llama_memory_seq_rm(self._memory, slot.id, count or -1, -1)
            del slot.held[count:]
            slot.checkpoints = [c for c in slot.checkpoints if c.length <= count]

    def _go_back(self, slot: Slot, count: int) -> int:
        """Leave the first `count` tokens, with what the memory has forgotten of them put back; returns how many are left."""
        oldest = self._oldest_position(slot) if self._rewind.window else 0
        if not scheduling.rewindable(len(slot.held), count, oldest, self._rewind):
            checkpoint = next((c for c in slot.checkpoints if c.length == count), None)
            if checkpoint is None or not checkpoints.put_back(self._context, slot.id, checkpoint):
                count = 0
        self._keep(slot, count)
        return count

    def _keep_aside(self, slot: Slot) -> None:
        """Take a checkpoint; when all of them together grow too large, the least recently used sequences lose theirs."""
        if self._scratch is None or any(c.length == len(slot.held) for c in slot.checkpoints):
            return
        taken = checkpoints.take(self._context, slot.id, len(slot.held), self._scratch)
        if taken is None:
            return
        slot.checkpoints = checkpoints.thinned([*slot.checkpoints, taken])
        for other in sorted(self._slots, key=lambda s: (s is slot, s.job is not None, s.last_used)):
            while other.checkpoints and sum(len(c.data) for s in self._slots for c in s.checkpoints) > self._cache_limit:
                del other.checkpoints[0]

    def _make_room(self, wanted: int) -> None:
        """Drop idle prefixes, least recently used first, until `wanted` more cells are free."""
        free = self._plan.cells - sum(len(s.held) for s in self._slots)
        for slot in sorted((s for s in self._slots if s.job is None and s.held), key=lambda s: s.last_used):
            if free >= wanted:
                return
            free += len(slot.held)
            self._keep(slot, 0)

    def _free(self, slot: Slot) -> None:
        if slot.job is not None:
            slot.job.sampler.close()
        slot.job = None
        self._clock += 1
        slot.last_used = self._clock
        if self._states is not None and slot not in self._unsaved:
            self._unsaved.append(slot)

    # --- one step

    def _step(self) -> None:
        active = [s for s in self._slots if s.runs]
        generating = sum(len(s.job.tokens) - len(s.held) == 1 for s in active if s.job)
        self._make_room(len(active))
        # A long prompt beside running answers is fed in smaller pieces, so that their tokens keep coming.
        budget = self._batch.capacity if not generating else min(self._batch.capacity, generating + self._plan.micro_batch)
        while True:
            outputs, fed = self._fill(active, budget)
            code = self._batch.decode(self._context)
            self._decodes += 1
            if code != 1:
                break
            survivor = self._out_of_cells(active)
            if survivor is None:
                return
            active = survivor
        if code != 0:
            self._decode_failed(active, code)
            return
        for slot, tokens, index in fed:
            if slot.job is not None and slot.job.scores is not None:
                prompt = slot.job.tokens[: slot.job.prompt_count]
                slot.job.scores.take(self._context, index, prompt, len(slot.held), len(tokens), self._vocabulary.size)
            slot.held += tokens
            if slot.job is not None and len(slot.held) in slot.job.pauses:
                self._keep_aside(slot)
        self._busy_total += len(active)
        for slot, index in outputs:
            self._sample(slot, index)

    def _fill(self, active: list[Slot], budget: int) -> tuple[list[tuple[Slot, int]], list[tuple[Slot, list[int], int]]]:
        self._batch.clear()
        outputs: list[tuple[Slot, int]] = []
        fed: list[tuple[Slot, list[int], int]] = []
        jobs = sorted(((s, s.job) for s in active if s.job is not None), key=lambda p: (len(p[1].tokens) - len(p[0].held) > 1, p[1].arrived))
        # Each request may need one row of output; what is left over may score prompts.
        rows = self._plan.outputs - len(jobs) + 1
        for slot, job in jobs:
            room = min(budget - self._batch.size, self._batch.room)
            if room <= 0:
                break
            start = len(slot.held)
            pause = next((p for p in job.pauses if p > start), len(job.tokens))
            scored = job.scores is not None and job.scores.pending(start, job.prompt_count)
            if scored:
                room = min(room, rows)
            tokens = job.tokens[start : min(start + room, pause)]
            last = start + len(tokens) == len(job.tokens)
            index = self._batch.add(tokens, start, slot.id, outputs="all" if scored else "last" if last else "none")
            rows -= len(tokens) - 1 if scored else 0
            fed.append((slot, tokens, index))
            if last:
                outputs.append((slot, index))
        return outputs, fed

    def _out_of_cells(self, active: list[Slot]) -> list[Slot] | None:
        """No cells were left for this batch: drop idle prefixes, then let the youngest request wait with its tokens kept."""
        dropped = [s for s in self._slots if s.job is None and s.held]
        for slot in dropped:
            self._keep(slot, 0)
        if dropped:
            return active
        youngest = max(active, key=lambda s: s.job.arrived if s.job else 0.0)
        if len(active) == 1:
            self._finish(youngest, "length", b"")
            self._keep(youngest, 0)
            return None
        if youngest.job is not None:
            self._queue.appendleft(youngest.job)
        youngest.job = None
        self._keep(youngest, 0)
        return [s for s in active if s is not youngest]

    def _decode_failed(self, active: list[Slot], code: int) -> None:
        error = {"status": 500, "code": "decode_failed", "message": f"llama.cpp could not decode (code {code})", "param": None}
        for slot in active:
            if slot.job is not None:
                self._events.append({"i": slot.job.id, "err": error})
            self._free(slot)
        L.llama_memory_clear(self._memory, True)
        for slot in self._slots:
            slot.held.clear()
            slot.checkpoints.clear()

    def _sample(self, slot: Slot, index: int) -> None:
        job = slot.job
        if job is None:
            return
        if job.limit == 0:
            self._finish(slot, "length", b"")
            return
        logits = floats_at(get_logits_ith(self._context, index), self._vocabulary.size)
        choice = job.sampler.try_sample(logits)
        if choice is not None:
            self._append(slot, job, choice)
            return
        # The others go on meanwhile; the row is llama.cpp's until its next decode.
        row = logits.copy()
        job.searching = True
        self._aside.run(lambda: job.sampler.search(row), lambda future: self._found(slot, job, future))

    def _found(self, slot: Slot, job: Job, future: Future[Choice]) -> None:
        """The grammar has been searched; the answer goes on, unless nobody waits for it any more."""
        job.searching = False
        if job.cancelled:
            self._free(slot)
        else:
            self._append(slot, job, future.result())

    def _append(self, slot: Slot, job: Job, choice: Choice) -> None:
        job.sampler.accept(choice.token)
        if not job.first_token:
            job.first_token = time.perf_counter()
        job.tokens.append(choice.token)
        if not job.announced:
            job.announced = True
            self._events.append({"i": job.id, "start": {"prompt": job.prompt_count, "cached": job.cached}, **self._prompt_scores(job)})
        if self._vocabulary.ends(choice.token):
            self._finish(slot, "stop", b"")
            return
        piece = self._vocabulary.piece(choice.token, special=choice.token in job.preserved)
        delta = job.text.feed(piece)
        event: Message = {"i": job.id, "d": delta}
        if job.params.n_probs:
            event["lp"] = self._probabilities(choice)
        if job.text.stopped_by is not None:
            self._events.append(event)
            self._finish(slot, "stop", b"")
        elif job.generated >= job.limit:
            self._events.append(event)
            self._finish(slot, "length", b"")
        elif delta or job.params.n_probs:
            if job.unsaid:
                event["n"] = job.unsaid + 1
                job.unsaid = 0
            self._events.append(event)
        else:
            job.unsaid += 1

    def _probabilities(self, choice: Choice) -> list[Any]:
        return [self._scored(choice.token, choice.logprob or 0.0), [self._scored(t, p) for t, p in choice.top]]

    def _prompt_scores(self, job: Job) -> Message:
        """What was asked about the prompt's tokens, told once."""
        scores, job.scores = job.scores, None
        if scores is None:
            return {}
        return {"pl": [[self._scored(job.tokens[0], None), []], *(self._probabilities(c) for c in scores.rows)]}

    def _scored(self, token: int, logprob: float | None) -> list[Any]:
        return [token, list(self._vocabulary.piece(token, special=True)), None if logprob is None else max(logprob, -9999.0)]

    def _finish(self, slot: Slot, reason: str, piece: bytes) -> None:
        job = slot.job
        if job is None:
            return
        rest = job.text.feed(piece) if piece else ""
        rest += job.text.finish()
        event: Message = {"i": job.id, "f": reason, "u": job.usage()}
        event.update(self._prompt_scores(job))
        if rest:
            event["d"] = rest
        if job.text.stopped_by is not None:
            event["stop"] = job.text.stopped_by
        self._events.append(event)
        self._free(slot)


def _is_quick(message: Message) -> bool:
    """Whether a request can be made ready in far less time than a step takes."""
    if message.get("grammar"):
        return False
    content = message.get("prompt", message.get("content", message.get("inputs")))
    if isinstance(content, str):
        return len(content) < _QUICK
    return sum(len(str(part)) if isinstance(part, (str, dict)) else 4 for part in content or ()) < _QUICK
