"""What a pod on a GPU gets of main memory, and what is measured there."""

from __future__ import annotations

from corral.control.facts import Facts
from corral.control.limits import memory_beside_gpu, memory_limit
from corral.control.observation import MemoryUse, SupervisorStatus
from corral.control.settings import MI, ControlSettings
from corral.domain.footprint import need_on
from corral.domain.model import DeviceKind, Footprint, ReplicaState

GI = 1 << 30
BIG = Footprint(weights=20 * GI, kv=2 * GI, compute=GI, overhead=300 * MI, device_overhead=512 * MI, input=GI // 2)


def test_main_memory_of_a_gpu_pod_is_without_weights_and_cache():
    settings = ControlSettings()
    assert memory_beside_gpu(BIG, 128 * MI) == 300 * MI + GI // 2
    assert memory_beside_gpu(None, 128 * MI) == 128 * MI
    limit = memory_limit(BIG, settings, DeviceKind.GPU)
    assert memory_beside_gpu(BIG, 128 * MI) + GI + settings.gpu_host_extra <= limit < 10 * GI
    assert memory_limit(BIG, settings, DeviceKind.HOST) > 23 * GI


def measured(*devices: str) -> Facts:
    facts = Facts(uid="u")
    use = MemoryUse(weights=3 * GI, kv=GI, compute=GI, total=30 * GI)
    facts.measure(SupervisorStatus(version=1, state=ReplicaState.LOADED, memory=use, devices=devices))
    return facts


def test_on_a_gpu_the_buffers_are_measured_and_on_host_memory_the_process():
    assert measured("GPU-1").required == 5 * GI
    assert measured("host").required == 30 * GI
    assert measured().required == 30 * GI


def test_the_larger_of_estimate_and_measurement_counts_on_a_gpu():
    assert need_on(BIG, DeviceKind.GPU) == 23 * GI + 512 * MI
    assert need_on(Footprint(weights=GI, kv=0, compute=0, measured=2 * GI), DeviceKind.GPU) == 2 * GI
