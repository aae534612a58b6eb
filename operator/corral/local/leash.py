"""Run a command that dies with its parent: `python leash.py PARENT_PID COMMAND...`.

It asks the kernel for a SIGKILL at the parent's death and then becomes the command. Standard library only, and run by path, so that it costs a few
milliseconds. Where the kernel knows no such request (not Linux) the warden alone guards.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - nothing to import elsewhere

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request was in force
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - the command is ours


if __name__ == "__main__":
    main()
