"""Process groups end whole, however the one who started them went. Real processes, really killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from corral.local import processes
from corral.local.processes import LEASH, Group, Warden, kill_leftovers
from corral.local.rundir import RunDir, RunDirBusyError

# A leader with a child of its own, as a supervisor has its engine; neither minds SIGTERM.
FAMILY = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child: print(os.getpid(), child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def run_dir(tmp_path):
    found = RunDir(tmp_path / "run")
    with found.claim():
        yield found


def wait_for(condition, seconds=10.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


async def family(run_dir, warden):
    log = run_dir.log_of("x/family")
    group = await Group.start([sys.executable, "-c", FAMILY], os.environ, log, uid="u1", run_dir=run_dir, warden=warden)
    while not log.exists() or not log.read_text().strip():
        await asyncio.sleep(0.02)
    return group, [int(pid) for pid in log.read_text().split()]


def gone(pids):
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


async def test_what_a_leader_leaves_is_killed_when_it_ends(run_dir):
    warden = Warden()
    group, pids = await family(run_dir, warden)
    assert os.getpgid(pids[1]) == group.pid
    os.kill(pids[0], signal.SIGKILL)
    assert await group.wait() == -signal.SIGKILL
    wait_for(lambda: gone(pids))
    assert list(run_dir.processes.iterdir()) == []
    warden.close()


async def test_the_warden_kills_groups_when_its_pipe_closes(run_dir):
    warden = Warden()
    _, pids = await family(run_dir, warden)
    warden.close()
    wait_for(lambda: gone(pids))


async def test_the_warden_leaves_a_forgotten_group_alone(run_dir):
    warden = Warden()
    group, pids = await family(run_dir, warden)
    warden.forget(group.pid)
    warden.close()
    assert not gone(pids)
    group.kill()
    await group.wait()


def test_a_leashed_process_dies_with_its_parent():
    script = (
        "import os, subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-I', '-S', {str(LEASH)!r}, str(os.getpid()), 'sleep', '60'])\n"
        "print(p.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        wait_for(lambda: psutil.Process(child).name() == "sleep")
        parent.kill()
    wait_for(lambda: gone([child]))


def test_a_leash_whose_parent_is_gone_already_starts_nothing():
    done = subprocess.run([sys.executable, "-I", "-S", str(LEASH), "1", "echo", "started"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_leftovers_are_found_by_their_mark_and_others_of_the_same_number_are_not(run_dir):
    env = {**os.environ, processes.MARK: "u1"}
    with (
        subprocess.Popen(["sleep", "60"], env=env, start_new_session=True) as ours,
        subprocess.Popen(["sleep", "60"], start_new_session=True) as other,
    ):
        try:
            for process in (ours, other):
                (run_dir.processes / str(process.pid)).write_text(json.dumps({"uid": "u1"}))
            assert kill_leftovers(run_dir) == 1
            wait_for(lambda: gone([ours.pid]))
            assert other.poll() is None
            assert list(run_dir.processes.iterdir()) == []
        finally:
            other.kill()


def test_a_run_directory_has_one_owner(run_dir):
    run_dir.admin.write_text(json.dumps({"pid": 7, "endpoint": "http://127.0.0.1:1"}))
    with pytest.raises(RunDirBusyError, match=r"pid 7, http://127.0.0.1:1.*--run-dir"):
        RunDir(run_dir.root).claim()
    assert run_dir.instance() == {"pid": 7, "endpoint": "http://127.0.0.1:1"}


def test_no_instance_is_told_of_a_directory_that_nobody_owns(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    run_dir.claim().close()
    run_dir.admin.write_text("{}")
    assert run_dir.instance() is None


def test_the_epoch_grows_with_each_owner(run_dir):
    assert [run_dir.next_epoch() for _ in range(3)] == [1, 2, 3]
