"""Takes everything away that `up` made, however far it came and however it ended. Safe on a machine where nothing is left."""

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

from twonodes import cgroups, network, processes
from twonodes.node import FIXED_FOLDERS
from twonodes.state import ClusterError

DETACH = 2
NAMESPACES = Path("/run/netns")


def down(state: Path) -> None:
    processes.stop(state)
    cgroups.down()
    _unmount_below(state)
    network.down()
    _remove_empty_folders()
    if state.exists():
        if left := _mounts_below(state):
            raise ClusterError(f"still mounted, so {state} is not removed: {', '.join(left)}")
        shutil.rmtree(state)


def leftovers(state: Path) -> list[str]:
    """What is still there of a cluster, in words; empty after `down`."""
    links = [path for path in Path("/sys/class/net").iterdir() if path.name == network.BRIDGE or path.name.startswith(f"{network.PREFIX}-v")]
    found = [f"process {pid} ({name})" for pid, name in processes.members(state).items()]
    found += [f"mount {path}" for path in _mounts_below(state)]
    found += [f"control group {path}" for path in cgroups.leftovers()]
    found += [f"network namespace {path}" for path in NAMESPACES.glob(f"{network.PREFIX}-n*")]
    found += [f"interface {path.name}" for path in links]
    return found + ([f"folder {state}"] if state.exists() else [])


def _remove_empty_folders() -> None:
    """The points that the nodes mounted their own folders on; what somebody else uses stays."""
    if NAMESPACES.is_dir() and not any(NAMESPACES.iterdir()):
        ctypes.CDLL(None).umount2(os.fsencode(NAMESPACES), 0)  # `ip netns` mounts it on itself
    for folder in (*FIXED_FOLDERS, NAMESPACES):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _mounts_below(state: Path) -> list[str]:
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        path = line.split()[1].encode().decode("unicode_escape")
        if path.startswith(f"{state}/"):
            found.append(path)
    return found


def _unmount_below(state: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(10):  # one path may be mounted over more than once
        paths = _mounts_below(state)
        if not paths:
            return
        for path in reversed(paths):
            if libc.umount2(os.fsencode(path), DETACH):
                raise ClusterError(f"cannot unmount {path}: {os.strerror(ctypes.get_errno())}")
