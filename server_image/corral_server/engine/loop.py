"""The inference loop: one thread, one context, one batch a step for all slots, one message a step to the supervisor.

Owns the queue and the order of things. It must never block on anything but the supervisor's next message, and only when there is no work.
"""

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corral_server.channel import BlockingChannel, Message
from corral_server.engine import scheduling
from corral_server.engine.adapters import AdapterSet, Switch
from corral_server.engine.aside import Aside
from corral_server.engine.batch import Batch
from corral_server.engine.desk import Desk
from corral_server.engine.drafter import Drafter
from corral_server.engine.embedding import EmbeddingLoop
from corral_server.engine.jobs import Job, make_embed_job, make_job
from corral_server.engine.library import L, floats_at, get_logits_ith
from corral_server.engine.media_showing import Showing
from corral_server.engine.model import has_state
from corral_server.engine.pace import Pace
from corral_server.engine.plan import EnginePlan
from corral_server.engine.sampling import BrokenLogits, Choice
from corral_server.engine.sequences import Sequences, Slot
from corral_server.engine.states import StateStore
from corral_server.engine.telling import Teller
from corral_server.engine.threads import Threads
from corral_server.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from corral_server.engine.media_projector import Projector

_HEADROOM = 64
_BEFORE_END = 4
_SPACING = 512


class StopLoop(Exception):  # noqa: N818  it is how the loop ends, not an error
    """The supervisor asked the engine to end. `keep`: what was answered last is to outlive it."""

    def __init__(self, *, keep: bool) -> None:
        super().__init__(keep)
        self.keep = keep


@dataclass(frozen=True)
class _Fed:
    """What a step puts into the batch for one slot; `index` is the place of the last token, `last` when its row says what comes next."""

    slot: Slot
    tokens: list[int]
    index: int
    last: bool


class Loop:
    def __init__(
        self, channel: BlockingChannel, model: Any, context: Any, plan: EnginePlan, vocabulary: Vocabulary, states: StateStore | None,
        threads: Threads, scratch: Path | None = None, cache_limit: int = 256 << 20, adapters: list[Any] | None = None,
        drafter: Drafter | None = None, projector: "Projector | None" = None,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._context = context
        self._plan = plan
        self._vocabulary = vocabulary
        self._aside = Aside()
        self._teller = Teller(vocabulary)
        self._desk = Desk(vocabulary, self._aside, self._teller.say, projector)
        self._queue: deque[Job] = deque()
        self._batch = Batch(L.llama_n_batch(context))
        self._switch = Switch(context, adapters or [])
        self._rewind = scheduling.Rewind(window=max(L.llama_model_n_swa(model), 0), recurrent=has_state(model))
        self._sequences = Sequences(
            context, count=plan.slots, cells=plan.cells, rewind=self._rewind, states=states, scratch=scratch, cache_limit=cache_limit
        )
        self._embedding = EmbeddingLoop(
            context, self._batch, sequences=plan.slots, width=L.llama_model_n_embd_out(model), rank=plan.pooling == "Rank"
        )
        self._showing = None if projector is None else Showing(
            projector, context, self._aside, sequences=self._sequences, teller=self._teller,
            evaluated=lambda *fed: self._evaluated(_Fed(*fed)), out_of_cells=self._out_of_cells, failed=self._decode_failed,
        )  # fmt: skip
        # What a memory has forgotten cannot be taken back, so a wrong guess could not either.
        guesses = plan.drafted > 0 and not self._rewind.recurrent and not self._rewind.window
        self._drafts = "" if not guesses else "model" if drafter else "ngram"
        self._drafter = drafter
        self._pace = Pace(plan.micro_batch)
        self._threads = threads
        self._decodes = 0
        self._busy_total = 0

    # --- the loop

    def run(self) -> None:
        slots = self._sequences.slots
        try:
            while True:
                # What only waits for work beside this thread is no reason to turn in circles.
                busy = bool(self._embedding.jobs or any(s.runs for s in slots) or (self._queue and not self._aside.waiting))
                for message in self._arrived(busy=busy):
                    self._handle(message)
                self._aside.collect()
                if self._embedding.jobs:
                    self._threads.work()
                    self._teller.events += self._embedding.step()
                    self._decodes += 1
                self._admit()
                if any(s.runs for s in slots):
                    self._threads.work()
                    self._step()
                self._threads.worked()
                self._flush()
                if not busy and self._sequences.unsaved:
                    self._sequences.save_one()
        except StopLoop as stop:
            # An answer's end may be told, and the stop be here, before its sequence could be kept.
            while stop.keep and self._sequences.unsaved:
                self._sequences.save_one()

    def _arrived(self, *, busy: bool) -> list[Message]:
        """The supervisor's messages; waits for one when there is nothing to do."""
        if not busy:
            self._threads.rest()
        if busy or self._sequences.unsaved:
            return self._channel.poll()
        return self._channel.receive(self._threads.pulse, unless=self._aside.fileno())

    def _handle(self, message: Message) -> None:
        kind = message["t"]
        if kind == "new":
            self._desk.prepare(message, lambda: self._job(message), self._enqueue)
        elif kind == "embed":
            limit = self._plan.context_length
            self._desk.prepare(message, lambda: make_embed_job(message, self._vocabulary, limit), self._embedding.add)
        elif kind == "cancel":
            self._cancel(message["id"])
        elif kind == "tokenize":
            self._desk.tokenize(message)
        elif kind == "detokenize":
            self._desk.detokenize(message)
        elif kind == "slots":
            self._teller.say({"i": message["id"], "f": "stop", "slots": [_describe(s) for s in self._sequences.slots]})
        elif kind == "erase":
            self._erase(message)
        elif kind == "stop":
            raise StopLoop(keep=message["keep"])

    def _job(self, message: Message) -> Job:
        return make_job(
            message, self._vocabulary, self._plan.context_length, adapters=self._switch.count, drafts=self._drafts, slots=self._plan.slots,
            shown=self._desk.shown(message),
        )  # fmt: skip

    def _enqueue(self, job: Job) -> None:
        if job.media is not None:
            self._teller.say({"i": job.id, "taken": True})
        self._queue.append(job)

    def _flush(self) -> None:
        if self._teller.events:
            slots = self._sequences.slots
            active = sum(s.job is not None for s in slots)
            figures = {"decodes": self._decodes, "busy": self._busy_total, "held": max((len(s.held) for s in slots), default=0)}
            figures["threads"] = self._threads.count
            self._channel.send({"t": "step", "e": self._teller.take(), "queued": len(self._queue), "active": active, "figures": figures})

    def _cancel(self, job_id: int) -> None:
        self._desk.cancel(job_id)
        self._queue = deque(j for j in self._queue if j.id != job_id)
        self._embedding.cancel(job_id)
        for slot in self._sequences.slots:
            if slot.job is not None and slot.job.id == job_id:
                if slot.job.beside:
                    slot.job.cancelled = True
                else:
                    self._sequences.free(slot)

    def _erase(self, message: Message) -> None:
        """Forget what an idle slot holds."""
        slot = self._sequences.slots[message["slot"]]
        count = len(slot.held) if slot.job is None else 0
        if slot.job is None:
            self._sequences.keep(slot, 0)
        self._teller.say({"i": message["id"], "f": "stop", "erased": count, "busy": slot.job is not None})

    # --- admission

    def _admit(self) -> None:
        waiting: list[Job] = []
        while self._queue:
            job = self._queue[0]
            if self._follows(job):
                waiting.append(self._queue.popleft())
                continue
            if not self._sequences.fits(job, min(_HEADROOM, job.limit - job.generated)):
                break
            placed = self._sequences.place(job)
            if placed is None:
                if job.slot is None:
                    break
                # Whoever waits for one slot holds up nobody who takes any.
                waiting.append(self._queue.popleft())
                continue
            self._queue.popleft()
            slot, kept = placed
            job.placed = slot.id
            if self._sequences.takes_checkpoints:
                job.pauses = scheduling.checkpoint_positions(job.prompt_count, max(_SPACING, self._plan.micro_batch), _BEFORE_END)
            if job.cached < 0:
                job.cached = kept
                job.started = time.perf_counter()
                self._teller.progress(job, kept)
        self._queue.extendleft(reversed(waiting))

    def _follows(self, job: Job) -> bool:
        """Whether a request has to wait for the one that evaluates the same prompt for both."""
        if job.leader is None or self._rewind.recurrent:
            return False
        if self._desk.prepares(job.leader) or any(q.id == job.leader for q in self._queue):
            return True
        slots = self._sequences.slots
        return any(s.job is not None and s.job.id == job.leader and len(s.held) < job.prompt_count for s in slots)

    # --- one step

    def _step(self) -> None:
        active = self._with_one_set([s for s in self._sequences.slots if s.runs])
        if self._showing is not None:
            active = self._showing.step(active)
            if not active:
                return
        generating = sum(len(s.job.tokens) - len(s.held) == 1 for s in active if s.job)
        self._sequences.make_room(len(active))
        # A long prompt beside running answers is fed in smaller pieces, so that their tokens keep coming.
        budget = self._batch.capacity if not generating else min(self._batch.capacity, generating * (1 + self._plan.drafted) + self._pace.piece())
        guesses = bool(self._drafts)
        if self._drafter is not None:
            self._drafter.guess(self._sequences.slots, active)
        while True:
            fed = self._fill(active, budget, guesses=guesses)
            self._threads.before(self._batch.size)
            begin = time.perf_counter()
            code = self._batch.decode(self._context)
            self._decodes += 1
            if code != 1:
                break
            if guesses and any(s.job is not None and s.job.guessed for s in active):
                # Nobody gives way for a guess.
                guesses = False
                continue
            survivors = self._out_of_cells(active)
            if survivors is None:
                return
            active = survivors
        if code != 0:
            self._decode_failed(active, code)
            return
        self._pace.took(self._batch.size, time.perf_counter() - begin)
        self._busy_total += len(active)
        for piece in fed:
            self._evaluated(piece)

    def _with_one_set(self, active: list[Slot]) -> list[Slot]:
        """Those of one set of adapters: only they may share a batch."""
        if not self._switch.count:
            return active
        waiting: dict[AdapterSet, float] = {}
        for slot in active:
            if slot.job is not None:
                waiting[slot.adapters] = min(waiting.get(slot.adapters, slot.job.arrived), slot.job.arrived)
        chosen = self._switch.choose(waiting)
        return [s for s in active if s.adapters == chosen]

    def _fill(self, active: list[Slot], budget: int, *, guesses: bool) -> list[_Fed]:
        self._batch.clear()
        fed: list[_Fed] = []
        jobs = sorted(((s, s.job) for s in active if s.job is not None), key=lambda p: (len(p[1].tokens) - len(p[0].held) > 1, p[1].arrived))
        # Each request may need one row of output; what is left over may score prompts and guesses.
        rows = self._plan.outputs - len(jobs) + 1
        for slot, job in jobs:
            room = min(budget - self._batch.size, self._batch.room)
            if room <= 0:
                break
            start = len(slot.held)
            scored = job.scores is not None and job.scores.pending(start, job.prompt_count)
            if scored:
                room = min(room, rows)
            tokens = job.tokens[start : min(start + room, job.until(start))]
            last = start + len(tokens) == len(job.tokens)
            job.guessed = self._guess(job, min(room - 1, rows - 1)) if guesses and last and len(tokens) == 1 else []
            tokens += job.guessed
            every = scored or bool(job.guessed)
            index = self._batch.add(tokens, job.position(start), slot.id, outputs="all" if every else "last" if last else "none")
            rows -= len(tokens) - 1 if every else 0
            fed.append(_Fed(slot, tokens, index, last))
        return fed

    def _guess(self, job: Job, room: int) -> list[int]:
        if job.draft is None or not job.generated:
            return []
        return job.draft.guess(job.tokens, min(room, self._plan.drafted, job.limit - job.generated - 1))

    def _evaluated(self, piece: _Fed) -> None:
        """The batch has been decoded: what it says of one slot."""
        slot, job = piece.slot, piece.slot.job
        if job is None:
            return
        if job.scores is not None:
            prompt = job.tokens[: job.prompt_count]
            job.scores.take(self._context, piece.index, prompt, len(slot.held), len(piece.tokens), self._vocabulary.size)
        slot.held += piece.tokens
        if not job.generated:
            self._teller.progress(job, len(slot.held))
        if len(slot.held) in job.pauses:
            self._sequences.take_checkpoint(slot)
        if not piece.last:
            return
        if job.guessed:
            self._judge(slot, job, piece.index)
            return
        # Answers to one prompt begin at the very same figures: evaluated again they might differ, and a greedy answer with them.
        others = [] if job.generated else self._followers(slot, job)
        for one, its in [(slot, job), *others]:
            self._sample(one, its, piece.index)

    def _followers(self, slot: Slot, job: Job) -> list[tuple[Slot, Job]]:
        """The waiting answers to the prompt that has just been evaluated, as many as there is room for, each in its slot."""
        found: list[tuple[Slot, Job]] = []
        for other in [j for j in self._queue if j.leader == job.id and not j.generated and j.adapters == slot.adapters]:
            if other.scores is not None or not self._sequences.fits(other, min(_HEADROOM, other.limit)):
                continue
            placed = self._sequences.follow(other, slot)
            if placed is None:
                break
            self._queue.remove(other)
            other.placed, other.cached, other.started = placed.id, other.prompt_count - 1, time.perf_counter()
            self._teller.progress(other, other.prompt_count)
            found.append((placed, other))
        return found

    def _judge(self, slot: Slot, job: Job, index: int) -> None:
        """Choose a token at each guess, as long as the guesses are what is chosen; the rest is taken back."""
        guessed, job.guessed = job.guessed, []
        accepted = 0
        for offset in range(len(guessed) + 1):
            self._sample(slot, job, index - len(guessed) + offset)
            if slot.job is not job or job.searching or offset == len(guessed) or job.tokens[-1] != guessed[offset]:
                break
            accepted += 1
        if job.draft is not None:
            job.draft.judged(len(guessed), accepted)
        self._sequences.keep(slot, len(job.tokens) - (0 if job.searching else 1))

    def _sample(self, slot: Slot, job: Job, index: int) -> None:
        if job.limit == 0:
            self._end(slot, job, "length")
            return
        logits = floats_at(get_logits_ith(self._context, index), self._vocabulary.size)
        try:
            choice = job.sampler.try_sample(logits)
        except BrokenLogits as error:
            self._teller.failed(job, "broken_logits", str(error), retry=False)
            self._sequences.free(slot)
            # What has been evaluated is as broken: nobody may go on from it.
            self._sequences.keep(slot, 0)
            return
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
            self._sequences.free(slot)
        else:
            self._append(slot, job, future.result())

    def _append(self, slot: Slot, job: Job, choice: Choice) -> None:
        if self._teller.token(job, choice):
            self._sequences.free(slot)

    def _end(self, slot: Slot, job: Job, reason: str) -> None:
        self._teller.end(job, reason)
        self._sequences.free(slot)

    # --- when a step fails

    def _out_of_cells(self, active: list[Slot]) -> list[Slot] | None:
        """No cells were left for this batch: drop idle prefixes, then let the youngest request wait with its tokens kept."""
        if self._sequences.drop_idle():
            return active
        running = [s for s in self._sequences.slots if s.job is not None and not s.job.searching]
        youngest = max(running, key=lambda s: s.job.arrived if s.job else 0.0)
        if youngest.job is not None and len(running) == 1:
            self._end(youngest, youngest.job, "length")
            self._sequences.keep(youngest, 0)
            return None
        if youngest.job is not None:
            self._queue.appendleft(youngest.job)
        youngest.job = None
        self._sequences.keep(youngest, 0)
        return [s for s in active if s is not youngest] or None

    def _decode_failed(self, active: list[Slot], code: int) -> None:
        for slot in active:
            if slot.job is not None:
                self._teller.failed(slot.job, "decode_failed", f"llama.cpp could not decode (code {code})")
            self._sequences.free(slot)
        self._sequences.clear()


def _describe(slot: Slot) -> Message:
    job = slot.job
    figures = {"generated": job.generated, "left": job.limit - job.generated, "task": job.id} if job else {"generated": 0, "left": -1, "task": -1}
    return {"id": slot.id, "processing": job is not None, "tokens": len(slot.held), **figures}
