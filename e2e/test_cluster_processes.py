"""The cluster's own processes are found whatever they are just doing. Needs no cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "cluster"
LOOKS = """
import sys
from pathlib import Path
from twonodes import processes
print(sum(int(sys.argv[2]) in processes.members(Path(sys.argv[1])) for _ in range(100)))
"""


def test_a_process_is_found_while_it_becomes_another_program(tmp_path: Path) -> None:
    """Every node's processes begin as `ip netns exec`, `unshare` or `nsenter`; an `up` that missed one in that moment called it dead."""
    again = tmp_path / "again"
    again.write_text('#!/bin/sh\nexec "$0"\n')
    again.chmod(0o755)
    with subprocess.Popen([again], env={"CORRAL_E2E_MEMBER": str(tmp_path), "PATH": "/usr/bin:/bin"}) as process:
        try:
            found = subprocess.run([sys.executable, "-c", LOOKS, tmp_path, str(process.pid)], cwd=FOLDER, capture_output=True, text=True, check=True)
        finally:
            process.kill()
    assert found.stdout.strip() == "100"
