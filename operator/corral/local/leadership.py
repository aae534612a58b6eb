"""Leadership in local mode: the owner of the run directory leads, and its epoch grows with every owner.

It must never be shared: the lock on the run directory is what makes the leader the only one.
"""

from __future__ import annotations

from corral.local.rundir import RunDir


class LocalLeadership:
    """Implements `Leadership`."""

    def __init__(self, run_dir: RunDir) -> None:
        self._epoch = run_dir.next_epoch()
        self._stopped = False

    @property
    def epoch(self) -> int:
        return self._epoch

    def may_write(self) -> bool:
        return not self._stopped

    def outdone(self, epoch: int) -> None:
        """Servers do not outlive an instance, so none has heard a later one's epoch."""

    def resign(self) -> None:
        """The instance is going down: nothing may be written any more."""
        self._stopped = True
