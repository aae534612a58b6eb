"""The nodes' own corner of the control groups: each kubelet gets a root of its own, or the two would destroy each other's pods."""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from twonodes.processes import send
from twonodes.state import SUFFIX

ROOT = f"corral-e2e{SUFFIX}"
MOUNT = Path("/sys/fs/cgroup")


def kubelet_root(node: str) -> str:
    return f"/{ROOT}/{node}"


def up(nodes: list[str]) -> None:
    for hierarchy in _hierarchies():
        for folder in (hierarchy / ROOT, *(hierarchy / ROOT / node for node in nodes)):
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):  # v1 starts them empty, and an empty set holds no process
                if (folder / name).exists() and not (folder / name).read_text().strip():
                    (folder / name).write_text((folder.parent / name).read_text())


def down(patience: float = 5) -> None:
    """Kills what is left of the containers, and removes the groups from the leaves up."""
    end = time.monotonic() + patience
    while groups := [group for hierarchy in _hierarchies() for group in _tree(hierarchy / ROOT)]:
        for group in groups:
            with contextlib.suppress(OSError):
                for pid in (group / "cgroup.procs").read_text().split():
                    send(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                group.rmdir()
        if time.monotonic() > end:
            raise RuntimeError(f"control groups that cannot be removed: {', '.join(map(str, groups))}")
        time.sleep(0.02)


def leftovers() -> list[Path]:
    return [hierarchy / ROOT for hierarchy in _hierarchies() if (hierarchy / ROOT).exists()]


def _hierarchies() -> list[Path]:
    """The mount of v2, or each hierarchy of v1."""
    if (MOUNT / "cgroup.controllers").exists():
        return [MOUNT]
    return [folder for folder in MOUNT.iterdir() if folder.is_dir() and not folder.is_symlink() and (folder / "cgroup.procs").exists()]


def _tree(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for child in folder.iterdir():
            if child.is_dir():
                yield from _tree(child)
        yield folder
