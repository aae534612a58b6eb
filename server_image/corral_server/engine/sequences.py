"""The context's sequences and the cells that they share: what each holds, what of it a request may keep, who gives way.

Owns every call that changes the context's memory outside of a decode. Decisions are `scheduling`'s.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corral_server.engine import checkpoints, media_marks, scheduling
from corral_server.engine.adapters import AdapterSet
from corral_server.engine.checkpoints import Checkpoint
from corral_server.engine.jobs import Job
from corral_server.engine.library import L
from corral_server.engine.states import StateStore


@dataclass(eq=False)
class Slot:
    """One sequence of the context. `held` are the tokens in its cells, evaluated with `adapters`."""

    id: int
    held: list[int] = field(default_factory=list)
    adapters: AdapterSet = ()
    job: Job | None = None
    last_used: int = 0
    rests_since: float = 0.0
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether the next batch has something for it."""
        return self.job is not None and not self.job.beside


class Sequences:
    def __init__(
        self, context: Any, *, count: int, cells: int, rewind: scheduling.Rewind, states: StateStore | None, scratch: Path | None, cache_limit: int
    ) -> None:
        self.slots = [Slot(i) for i in range(count)]
        self.unsaved: deque[Slot] = deque()
        self._context = context
        self._memory = L.llama_get_memory(context)
        self._cells = cells
        self._rewind = rewind
        self._states = states
        self._scratch = scratch
        self._cache_limit = cache_limit
        self._clock = 0
        self.takes_checkpoints = scratch is not None and (rewind.recurrent or rewind.window > 0)

    def fits(self, job: Job, headroom: int) -> bool:
        active = [len(s.job.tokens) for s in self.slots if s.job is not None]
        return scheduling.fits(self._cells, active, len(job.tokens), headroom)

    def place(self, job: Job) -> tuple[Slot, int] | None:
        """Give a request its slot, with as much of its prompt in the cells as can be had; None when no slot is free."""
        idle = [s for s in self.slots if s.job is None and job.slot in (None, s.id)]
        choice = scheduling.choose_slot([self._view(s, job.adapters) for s in idle], job.tokens, self._rewind)
        if choice is None:
            return None
        reuses = job.cache and job.scores is None
        slot, kept = self.slots[choice[0].id], choice[1] if reuses else 0
        kept = self._go_back(slot, kept)
        slot.adapters = job.adapters
        if reuses:
            kept = self._share(slot, job, kept)
            kept = self._restore(slot, job, kept)
        slot.job = job
        self._release_rested()
        self.make_room(len(job.tokens) - kept)
        return slot, kept

    def follow(self, job: Job, source: Slot) -> Slot | None:
        """Give a request a slot that holds, by reference, all that another one holds: the same prompt, evaluated to its end."""
        idle = [s for s in self.slots if s.job is None and job.slot in (None, s.id)]
        if not idle:
            return None
        slot = min(idle, key=lambda s: (len(s.held) > 0, s.last_used))
        self.keep(slot, 0)
        L.llama_memory_seq_cp(self._memory, source.id, slot.id, 0, media_marks.position(source.held, len(source.held)))
        slot.held, slot.adapters, slot.job = list(source.held), source.adapters, job
        return slot

    def keep(self, slot: Slot, count: int) -> None:
        """Leave the first `count` tokens in the slot's cells."""
        if count < len(slot.held):
            L.llama_memory_seq_rm(self._memory, slot.id, media_marks.position(slot.held, count) or -1, -1)
            del slot.held[count:]
            slot.checkpoints = [c for c in slot.checkpoints if c.length <= count]

    def cut(self, slot: Slot) -> None:
        """Take back what an interrupted decode left behind what the slot holds."""
        if not slot.held or not L.llama_memory_seq_rm(self._memory, slot.id, media_marks.position(slot.held, len(slot.held)), -1):
            L.llama_memory_seq_rm(self._memory, slot.id, -1, -1)
            slot.held.clear()
            slot.checkpoints.clear()

    def make_room(self, wanted: int) -> None:
        """Drop idle prefixes, least recently used first, until `wanted` more cells are free."""
        free = self._cells - sum(len(s.held) for s in self.slots)
        if free >= wanted:
            return
        for slot in sorted((s for s in self.slots if s.job is None and s.held), key=lambda s: s.last_used):
            if free >= wanted:
                return
            free += len(slot.held)
            self.keep(slot, 0)

    def _release_rested(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.job is None and slot.held:
                saved = self._states is not None and self._states.knows(slot.held, slot.adapters)
                if scheduling.outstayed(len(slot.held), now - slot.rests_since, saved=saved):
                    self.keep(slot, 0)

    def drop_idle(self) -> bool:
        """Whether there was anything to drop."""
        dropped = [s for s in self.slots if s.job is None and s.held]
        for slot in dropped:
            self.keep(slot, 0)
        return bool(dropped)

    def clear(self) -> None:
        L.llama_memory_clear(self._memory, True)
        for slot in self.slots:
            slot.held.clear()
            slot.checkpoints.clear()

    def free(self, slot: Slot) -> None:
        if slot.job is not None:
            slot.job.sampler.close()
        slot.job = None
        self._clock += 1
        slot.last_used = self._clock
        slot.rests_since = time.monotonic()
        if self._states is not None and slot not in self.unsaved:
            self.unsaved.append(slot)

    def save_one(self) -> None:
        """Keep an idle sequence beyond this process; only while nobody is being answered."""
        slot = self.unsaved.popleft()
        if self._states is not None and slot.job is None and slot.held:
            self._states.save(self._context, slot.id, slot.held, slot.checkpoints, adapters=slot.adapters)

    def take_checkpoint(self, slot: Slot) -> None:
        """Keep aside what the memory will forget; when all checkpoints together grow too large, the least recently used sequences lose theirs."""
        if self._scratch is None or any(c.length == len(slot.held) for c in slot.checkpoints):
            return
        taken = checkpoints.take(self._context, slot.id, len(slot.held), self._scratch)
        if taken is None:
            return
        slot.checkpoints = checkpoints.thinned([*slot.checkpoints, taken])
        for other in sorted(self.slots, key=lambda s: (s is slot, s.job is not None, s.last_used)):
            while other.checkpoints and sum(len(c.data) for s in self.slots for c in s.checkpoints) > self._cache_limit:
                del other.checkpoints[0]

    def _share(self, slot: Slot, job: Job, kept: int) -> int:
        """Take the beginning of another sequence, busy or idle, by reference; returns what the slot then holds."""
        others = [self._view(s, job.adapters) for s in self.slots if s is not slot and s.held]
        source = scheduling.choose_source(others, job.tokens, self._rewind, kept)
        if source is None:
            return kept
        self.keep(slot, 0)
        lender = self.slots[source.id]
        L.llama_memory_seq_cp(self._memory, source.id, slot.id, 0, media_marks.position(lender.held, source.length))
        # A beginning that others share is in use.
        lender.rests_since = time.monotonic()
        slot.held = lender.held[: source.length]
        return source.length

    def _restore(self, slot: Slot, job: Job, kept: int) -> int:
        """Bring back a saved state that holds more of the prompt than any sequence does."""
        found = self._states.find(job.tokens, self._rewind, kept, adapters=job.adapters) if self._states is not None else None
        if self._states is None or found is None:
            return kept
        entry, length = found
        busy = sum(len(s.held) for s in self.slots if s.job is not None)
        if busy + len(entry.tokens) > self._cells:
            return kept
        self.keep(slot, 0)
        self.make_room(len(entry.tokens))
        restored = self._states.restore(self._context, slot.id, entry)
        if restored is None:
            L.llama_memory_seq_rm(self._memory, slot.id, -1, -1)
            return 0
        slot.held = list(entry.tokens)
        slot.checkpoints = restored
        return self._go_back(slot, length)

    def _view(self, slot: Slot, adapters: AdapterSet) -> scheduling.IdleSlot:
        oldest = self._oldest_position(slot) if self._rewind.window else 0
        # A window is counted in positions; where pictures make those others than cells, nothing is kept.
        held = [] if self._rewind.window and media_marks.stretched(slot.held) else slot.held
        return scheduling.IdleSlot(slot.id, held, slot.last_used, oldest, [c.length for c in slot.checkpoints], foreign=slot.adapters != adapters)

    def _oldest_position(self, slot: Slot) -> int:
        return int(L.llama_memory_seq_pos_min(self._memory, slot.id)) if slot.held else 0

    def _go_back(self, slot: Slot, count: int) -> int:
        """Leave the first `count` tokens, with what the memory has forgotten of them put back; returns how many are left."""
        oldest = self._oldest_position(slot) if self._rewind.window else 0
        if not scheduling.rewindable(len(slot.held), count, oldest, self._rewind):
            checkpoint = next((c for c in slot.checkpoints if c.length == count), None)
            if checkpoint is None or not checkpoints.put_back(self._context, slot.id, checkpoint):
                count = 0
        self.keep(slot, count)
        return count
