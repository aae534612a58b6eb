"""Memory requests on host memory: what a pod keeps of its own for a while after a swap, what it gives back, and how a newcomer's is raised.

A kubelet looks at a pod that it has just touched only at its next round, up to a second later: two models that swap would wait for that each
time. So a pod that made way keeps its request for some seconds, unless the node's requests together would pass the device's limit. The engine is gone
and the commitment taken back by then: for the decision the bytes are free. Nothing here decides who goes where.
"""

from __future__ import annotations

from corral.control.pods import Pod
from corral.control.shell import Shell
from corral.domain.model import HOST_ID, DeviceKey
from corral.kube.ports import Gone


async def give_back(shell: Shell, key: str, *, swap: bool = False) -> bool:
    """Make sure that no engine runs, then take back commitment and memory. `swap`: the request may stay for a while.
    False: it is in use, or cannot be reached; nothing was taken.
    """
    if not await shell.release(key):
        return False
    pod = shell.pod(key)
    if pod is None or pod.resident or pod.commitment is not None or not pod.host:
        return True
    if swap and shell.settings.keep_memory:
        pod.kept = (shell.clock() + shell.settings.keep_memory, shell.residue(pod.record.model))
        shell.store.touch(key)
    else:
        await lower(shell, key)
    return True


async def lower(shell: Shell, key: str) -> None:
    """Give back the memory request of a pod that sleeps, and see it given back."""
    pod = shell.pod(key)
    if pod is None or not pod.host:
        return
    target = shell.residue(pod.record.model)
    if asked(pod) > target:
        try:
            shell.store.put_pod(await shell.workloads.resize(pod.record, target))
        except Gone:
            return
        await shell.store.until(key, lambda it: it is None or it.gone or it.record.memory_request <= target, shell.settings.grant_timeout)
    pod.kept = None
    shell.store.touch(key)


async def lift(shell: Shell, key: str, need: int, limit: int) -> None:
    """Ask for `need` bytes for a pod, after those of the node that only keep theirs gave back what is too much. Raises what `resize` raises."""
    pod = shell.pod(key)
    if pod is None:
        return
    async with shell.node_lock(pod.record.node):
        await _make_way(shell, pod.record.node, need, key)
        pod = shell.pod(key)
        if pod is not None:
            shell.store.put_pod(await shell.workloads.resize(pod.record, need, limit))


async def make_way(shell: Shell, node: str, need: int, newcomer: str = "") -> None:
    """Before anything is promised to a pod: what is only kept on its node is lowered, the longest kept first, until `need` bytes for this one fit
    beside all other requests.
    """
    async with shell.node_lock(node):
        await _make_way(shell, node, need, newcomer)


async def _make_way(shell: Shell, node: str, need: int, newcomer: str) -> None:
    device = shell.store.state.devices.get(DeviceKey(node, HOST_ID))
    there = [key for key in shell.store.state.by_node.get(node, ()) if key != newcomer]
    pods = {key: pod for key in there if (pod := shell.store.pods.get(key)) is not None and pod.host}
    if device is None:
        return
    over = need + sum(asked(pod) for pod in pods.values()) - device.usable
    for key, pod in sorted(pods.items(), key=lambda it: it[1].kept or (0.0, 0)):
        if over <= 0:
            return
        if pod.kept is not None:
            over -= asked(pod) - pod.kept[1]
            await lower(shell, key)


def asked(pod: Pod) -> int:
    """What it asks for, or still has."""
    return max(pod.record.memory_request, pod.record.memory_wanted)
