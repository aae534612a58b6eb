"""What the machine and its cgroup give this server: processors and memory. Reads files only."""

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def cpu_limit(root: Path = _CGROUP) -> float:
    """Processors that the cgroup allows, 0 when it sets no limit. `os.cpu_count()` does not know of it."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
        return 0.0 if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return 0.0 if quota_us <= 0 else quota_us / int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return 0.0


def physical_cores() -> int:
    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def oom_kills(root: Path = _CGROUP) -> int:
    """How often the kernel has killed in this cgroup for want of memory."""
    try:
        for line in (root / "memory.events").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def threads() -> int:
    """Of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def anonymous_bytes(pid: int | str) -> int:
    """A process's share of anonymous memory; pages shared since a fork are divided, so that a sum over the tree is right."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
    except OSError:
        return 0
    return total
