"""The control loop's settings: times in seconds, sizes in bytes. Values only; whoever starts the loop reads them from its own surroundings."""

from __future__ import annotations

from dataclasses import dataclass

from corral.domain import backoff

MI = 1 << 20


@dataclass(frozen=True, slots=True)
class ControlSettings:
    residue: int = 128 * MI
    """Host memory that a sleeping replica is counted with before one has been measured."""
    device_overhead: int = 512 * MI
    """What a context costs on each GPU, beside llama.cpp's buffers."""
    gpu_host_extra: int = 1024 * MI
    """What a driver's context keeps in main memory for each process, beside what is counted."""
    limit_factor: float = 1.25
    """A pod's memory limit: its footprint times this, and at least `limit_extra` more, so that nobody is killed for being measured late."""
    limit_extra: int = 256 * MI
    template: str = ""
    """Whatever else changes a rendered pod (the server's image, its environment); part of every revision."""

    report_lifetime: float = 15.0
    """A gateway's report that has not changed for so long counts no waiting."""
    resync: float = 30.0
    """Everything is looked at again so often, whether something happened or not."""
    message_interval: float = 10.0
    """A status that differs in a message alone is written so often at most."""
    last_used_interval: float = 60.0
    """`status.lastUsed` alone is written so often at most."""
    pool_interval: float = 2.0
    """A pool's status is written so often at most."""
    status_concurrency: int = 8

    connect_timeout: float = 2.0
    request_timeout: float = 10.0
    """A call to a supervisor, except `sleep` and the long poll."""
    sleep_timeout: float = 60.0
    """Saving a prompt cache and ending an engine."""
    poll_wait: float = 25.0
    """How long a supervisor may keep a long poll."""
    retry_min: float = 0.05
    retry_max: float = 2.0

    drain_ttl: float = 10.0
    """A pod that drains and hears nothing more from us admits again after this."""
    drain_grace: float = 5.0
    """How long after the end of a turn the last stream may take to end."""
    refusal_pause: float = 0.1
    """After a refused drain the same replica is left alone until it tells something new, or for so long."""
    wake_attempts: int = 5
    keep_memory: float = 10.0
    """How long a pod that made way for another model keeps its memory request while its node has room for it."""
    grant_timeout: float = 20.0
    """How long a kubelet may take to grant memory before the commitment is taken back."""
    load_timeout: float = 1800.0
    """A load that has neither ended nor failed by then is no longer followed; the supervisor has its own, shorter, limit."""
    delete_grace: float = 30.0
    expectation_lifetime: float = 30.0
    """How long something that was ordered is believed in without being seen."""
    action_backoff: float = 2.0
    """An action that the API refused is not tried again for so long, doubled each time."""
    action_backoff_max: float = 300.0

    estimate_concurrency: int = 2
    estimate_timeout: float = 600.0
    failure_backoff: float = backoff.FIRST
    """The first pause after a failure that may heal (a source that is not there, a failed load); doubled each time."""
    failure_backoff_max: float = backoff.LONGEST
