"""How much main memory a server pod asks for and may use, from what is known of its model. Pure."""

from __future__ import annotations

from corral.control.settings import MI, ControlSettings
from corral.domain.model import DeviceKind, Footprint


def memory_limit(footprint: Footprint | None, settings: ControlSettings, kind: DeviceKind = DeviceKind.HOST) -> int:
    """So far above the footprint that nobody is killed for what was not foreseen. 0: none, while nothing is known."""
    if footprint is None:
        return 0
    # Weights on their way to a GPU pass through the page cache, which is given back under pressure.
    total = footprint.on_host + settings.gpu_host_extra if kind is DeviceKind.GPU else max(footprint.estimated, footprint.measured)
    return -(-max(int(total * settings.limit_factor), total + settings.limit_extra) // MI) * MI


def memory_beside_gpu(footprint: Footprint | None, residue: int) -> int:
    """What a pod on a GPU requests of main memory, awake or asleep: no ledger of ours counts it, so the scheduler has to."""
    return max(residue, -(-(footprint.input + footprint.overhead) // MI) * MI if footprint is not None else 0)
