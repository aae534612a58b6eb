"""Takes everything away that `up` made, however far it came and however it ended. Safe on a machine where nothing is left."""

import contextlib
import ctypes
import os
import re
import shutil
from pathlib import Path

from twonodes import cgroups, network, processes
from twonodes.state import ClusterError

DETACH = 2
SHIM_SOCKETS = Path("/run/containerd/s")
CONTAINER_LOGS = Path("/var/log/containers")
CNI_RESULTS = Path("/var/lib/cni/results")
NAMESPACES = Path("/run/netns")
# Every kubelet puts its socket for device plugins here, whatever its own folder is.
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")


def down(state: Path) -> None:
    sockets = _shim_sockets(state)
    processes.stop(state)
    cgroups.down()
    _unmount_below(state)
    network.down()
    _remove_strays(state, sockets)
    if state.exists():
        if left := _mounts_below(state):
            raise ClusterError(f"still mounted, so {state} is not removed: {', '.join(left)}")
        shutil.rmtree(state)


def leftovers(state: Path) -> list[str]:
    """What is still there of a cluster, in words; empty after `down`."""
    found = [f"process {pid} ({name})" for pid, name in processes.members(state).items()]
    found += [f"mount {path}" for path in _mounts_below(state)]
    found += [f"control group {path}" for path in cgroups.MOUNT.glob(f"**/{cgroups.ROOT}")]
    found += [f"network namespace {path}" for path in NAMESPACES.glob("corral-n*")]
    found += [f"interface {path.name}" for path in Path("/sys/class/net").glob("corral*")]
    found += [f"file {path}" for path in (state, *CNI_RESULTS.glob("corral-n*"), *_log_links(state)) if path.exists() or path.is_symlink()]
    return found


def _shim_sockets(state: Path) -> set[Path]:
    """containerd's shims listen below /run/containerd, and leave their sockets there when they are killed; each bundle names its own."""
    found = set()
    for name in ("address", "bootstrap.json"):
        for file in state.glob(f"node-*/run/io.containerd.runtime.v2.task/*/*/{name}"):
            with contextlib.suppress(OSError):
                for digest in re.findall(rf"unix://{SHIM_SOCKETS}/([0-9a-f]+)", file.read_text()):
                    found.add(SHIM_SOCKETS / digest)
    return found


def _remove_strays(state: Path, sockets: set[Path]) -> None:
    kubelets = [] if processes.foreign(state, "kubelet") else [*DEVICE_PLUGINS.glob("kubelet*")]
    for path in (*sockets, *CNI_RESULTS.glob("corral-n*"), *_log_links(state), *kubelets):
        with contextlib.suppress(OSError):
            path.unlink()
    if NAMESPACES.is_dir() and not any(NAMESPACES.iterdir()):
        ctypes.CDLL(None).umount2(os.fsencode(NAMESPACES), 0)  # `ip netns` mounts it on itself
    for folder in (SHIM_SOCKETS, CNI_RESULTS, DEVICE_PLUGINS):
        for emptied in (folder, folder.parent):
            with contextlib.suppress(OSError):
                emptied.rmdir()  # only when it is empty: somebody else's stays
    for folder in (CONTAINER_LOGS, NAMESPACES):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _log_links(state: Path) -> list[Path]:
    """The kubelet links each container's log here, whatever its own folder for logs is."""
    if not CONTAINER_LOGS.is_dir():
        return []
    return [path for path in CONTAINER_LOGS.iterdir() if path.is_symlink() and str(path.readlink()).startswith(f"{state}/")]


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
