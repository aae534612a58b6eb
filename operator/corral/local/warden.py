"""Ends every process group that `corral up` started once `corral up` is gone, however it went.

Run by path with a pipe as standard input: lines `+PGID` and `-PGID` say which groups live. The pipe closes when the writer exits or is killed;
then all that is left is killed. Standard library only; it must never outlive its work.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the pipe ends it
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
