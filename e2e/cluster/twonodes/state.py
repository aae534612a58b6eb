"""Where the cluster keeps everything: one state folder, one lock, one mark on every process. It starts and stops nothing."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
TOOL_SOURCES = Path(__file__).resolve().parents[1] / "tools"
# Every process of the cluster carries this variable, with the state folder as its value: `down` finds it by that, however `up` ended.
MEMBER = "CORRAL_E2E_MEMBER"


def _instance() -> int:
    text = os.environ.get("CORRAL_E2E_INSTANCE") or "0"
    if text not in set("0123456789"):
        sys.exit(f"CORRAL_E2E_INSTANCE is {text!r}: it must be one digit")
    return int(text)


# More than one cluster can be up on a machine; each has its own addresses, names and state folder.
INSTANCE = _instance()
SUFFIX = f"-{INSTANCE}" if INSTANCE else ""


class ClusterError(Exception):
    """What is missing or wrong, in words for the person who called `up`."""


def cache() -> Path:
    return Path(os.environ.get("CORRAL_CACHE") or Path.home() / ".cache" / "corral").resolve()


def state() -> Path:
    """`$CORRAL_E2E_STATE`, or a folder below the temporary one. On disk: the nodes' images lie in it. Short: it holds Unix sockets."""
    folder = Path(os.environ.get("CORRAL_E2E_STATE") or f"/tmp/corral-e2e{SUFFIX}").resolve()
    if folder in {Path("/"), Path.home()} or len(str(folder)) > 40:
        raise ClusterError(f"CORRAL_E2E_STATE is {folder}: it must be a folder of its own with a path of 40 characters or fewer")
    if folder.exists() and any(folder.iterdir()) and not (folder / "mode").exists():
        raise ClusterError(f"{folder} holds something that is no cluster of ours: remove it, or set CORRAL_E2E_STATE to another folder")
    return folder


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One `up` or `down` at a time."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"e2e{SUFFIX}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another up or down is at work; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)
