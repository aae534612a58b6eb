"""The cache that pods share, with real files, processes and locks: its limit, what stays, two at once, a kill, a full disk, the page cache."""

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.harness import ROOT, Server
from tests.server.web_source import Site, serving
from tests.support.gguf_files import sentence_model

from corral_server.download import files, keep
from corral_server.download.get import Where, get
from corral_server.download.warm import warm
from corral_server.reasons import Failure


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentence_model().read_bytes()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def quiet(_done: int, _total: int) -> None:
    pass


def fetch(cache: Path, url: str, limit: int = 0) -> Path:
    return get(url, "", Where(cache=cache, allow_local=True, limit=limit), quiet)


def used_at(cache: Path, url: str, when: float) -> None:
    os.utime(files.folder(cache, url, "") / keep.USE, (when, when))


def fetch_process(cache: Path, url: str, limit: int = 0, **more: Any) -> subprocess.Popen[str]:
    """The download process as a supervisor starts it."""
    order = {
        "source": url, "sha256": "", "cache": str(cache), "cacheKey": "", "secretDir": "", "claimsDir": "/claims", "hubEndpoint": "",
        "allowLocal": True, "parent": os.getpid(), "limit": limit,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "corral_server.download"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "server_image")}, **more,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.close()
    return process


def outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    with process.stdout:
        lines = process.stdout.read().splitlines()
    process.wait(60)
    assert lines, f"exit code {process.returncode}"
    return dict(json.loads(lines[-1]))


def test_the_least_recently_used_goes_when_room_is_needed(model: bytes, cache: Path):
    names = ["/a.gguf", "/b.gguf", "/c.gguf"]
    with serving(Site(dict.fromkeys(names, model))) as site:
        a, b, c = (f"{site.url}{name}" for name in names)
        limit = 2 * len(model) + 20_000
        kept = {url: fetch(cache, url, limit) for url in (a, b)}
        used_at(cache, a, time.time() - 10)
        used_at(cache, b, time.time() - 20)
        kept[c] = fetch(cache, c, limit)
        assert {url for url, path in kept.items() if path.exists()} == {a, c}
        assert not files.folder(cache, b, "").exists()
        assert keep.keys(cache) == tuple(sorted(files.folder(cache, url, "").name for url in (a, c)))


def test_what_is_in_use_stays_and_the_error_counts_the_bytes(model: bytes, cache: Path):
    with serving(Site({"/a.gguf": model, "/b.gguf": model})) as site:
        limit = len(model) + 20_000
        first = fetch(cache, f"{site.url}/a.gguf", limit)
        held = keep.use(first.parent)
        with pytest.raises(Failure) as caught:
            fetch(cache, f"{site.url}/b.gguf", limit)
        assert caught.value.reason == "NoSpace"
        assert caught.value.retry
        for told in (f"{site.url}/b.gguf has {len(model)} bytes", f"its limit is {limit} bytes", "bytes of the disk are free"):
            assert told in caught.value.message
        assert first.read_bytes() == model
        left = files.folder(cache, f"{site.url}/b.gguf", "")
        assert not [file.name for file in left.iterdir() if file.suffix in (".part", ".gguf", ".json")]
        held.drop()
        assert fetch(cache, f"{site.url}/b.gguf", limit).exists()
        assert not first.exists()


def test_a_file_larger_than_the_limit_is_refused_before_it_is_fetched_and_costs_nobody_his_file_in_use(model: bytes, cache: Path):
    with serving(Site({"/a.gguf": model})) as site:
        with pytest.raises(Failure, match=f"has {len(model)} bytes .* its limit is 1000 bytes"):
            fetch(cache, f"{site.url}/a.gguf", 1000)
        assert keep.keys(cache) == ()


def test_two_processes_that_fill_a_cache_at_once_are_not_promised_the_same_bytes(model: bytes, cache: Path):
    """There is room for one: one of them gets it, and the other is told so. A supervisor that waits for the rest of its file has a claim to it."""
    gate = threading.Event()
    with serving(Site({"/a.gguf": model, "/b.gguf": model}, gate=gate)) as site:
        limit = len(model) + 20_000
        both = [fetch_process(cache, f"{site.url}/{name}.gguf", limit) for name in "ab"]
        # The one that was refused ends at once; the other one waits for the source.
        deadline = time.monotonic() + 30
        while all(process.poll() is None for process in both) and time.monotonic() < deadline:
            time.sleep(0.02)
        gate.set()
        results = [outcome(process) for process in both]
    assert sorted("path" in result for result in results) == [False, True], results
    refused = next(result for result in results if "failed" in result)
    assert refused["failed"] == "NoSpace"
    assert f"has {len(model)} bytes" in refused["message"]
    assert len(keep.keys(cache)) == 1
    assert sum(entry.stored for entry in keep.entries(cache)) <= limit


def test_two_processes_that_want_the_same_file_fetch_it_once_and_agree(model: bytes, cache: Path):
    with serving(Site({"/a.gguf": model})) as site:
        both = [fetch_process(cache, f"{site.url}/a.gguf") for _ in range(2)]
        results = [outcome(process) for process in both]
        assert results[0]["path"] == results[1]["path"]
        assert Path(results[0]["path"]).read_bytes() == model
        assert len([asked for asked in site.asked if asked[0] == "GET"]) == 1


def test_a_download_that_is_killed_leaves_no_promise_behind_and_is_gone_on_with(cache: Path):
    model = sentence_model(size=6_000_000).read_bytes()  # it is written by the mebibyte
    gate = threading.Event()
    with serving(Site({"/a.gguf": model, "/b.gguf": model}, gate=gate)) as site:
        limit = len(model) + 20_000
        process = fetch_process(cache, f"{site.url}/a.gguf", limit)
        part = files.folder(cache, f"{site.url}/a.gguf", "") / "a.gguf.part"
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        [entry] = keep.entries(cache)
        assert entry.promised == len(model) + (entry.stored - part.stat().st_size)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        have = part.stat().st_size
        assert 0 < have < len(model)
        gate.set()
        # Nobody uses it any more: it may go on, or go.
        assert fetch(cache, f"{site.url}/a.gguf", limit).read_bytes() == model
        assert f"bytes={have}-" in [asked[2] for asked in site.asked]
        fetch(cache, f"{site.url}/b.gguf", limit)
        assert keep.keys(cache) == (files.folder(cache, f"{site.url}/b.gguf", "").name,)


@contextlib.contextmanager
def small_disk(where: Path, size: int) -> Iterator[None]:
    where.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "corral-test", where], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_that_is_smaller_than_the_limit_is_seen_beforehand(model: bytes, cache: Path):
    with small_disk(cache, len(model) * 5 // 2), serving(Site(dict.fromkeys(["/a.gguf", "/b.gguf", "/c.gguf"], model))) as site:
        a, b, c = (f"{site.url}/{name}.gguf" for name in "abc")
        first = fetch(cache, a, 1 << 40)
        held = keep.use(first.parent)
        fetch(cache, b, 1 << 40)
        fetch(cache, c, 1 << 40)
        assert keep.keys(cache) == tuple(sorted(files.folder(cache, url, "").name for url in (a, c)))
        also = keep.use(files.folder(cache, c, ""))
        with pytest.raises(Failure, match=f"has {len(model)} bytes and there is no room .* bytes of the disk are free"):
            fetch(cache, b, 1 << 40)
        held.drop()
        also.drop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_that_somebody_else_fills_meanwhile_costs_unused_files_first_and_then_says_how_many_bytes(model: bytes, cache: Path):
    with small_disk(cache, len(model) * 3), serving(Site({"/a.gguf": model}, lengths=False)) as site:
        # Without a length nothing can be promised: the disk itself says no.
        old = files.folder(cache, "http://other/m.gguf", "")
        old.mkdir(parents=True)
        (old / "m.gguf").write_bytes(model)
        foreign = cache / "foreign"
        foreign.write_bytes(bytes(len(model) + len(model) // 2))
        path = fetch(cache, f"{site.url}/a.gguf")
        assert path.read_bytes() == model
        assert not old.exists()
        path.unlink()
        foreign.unlink()
        foreign.write_bytes(bytes(len(model) * 2 + len(model) // 2))
        with pytest.raises(Failure) as caught:
            fetch(cache, f"{site.url}/a.gguf")
        assert caught.value.reason == "NoSpace"
        assert "bytes of the disk are free" in caught.value.message
        assert not list(path.parent.glob("*.part"))


def test_a_file_size_limit_is_no_space_too_and_leaves_no_part(model: bytes, cache: Path):
    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(model) // 2, len(model) // 2))

    with serving(Site({"/a.gguf": model})) as site:
        result = outcome(fetch_process(cache, f"{site.url}/a.gguf", preexec_fn=bound))
        assert result["failed"] == "NoSpace", result
        assert f"no room for its {len(model)} bytes" in result["message"]
        assert f"after {len(model) // 2}" in result["message"]
        assert not list(files.folder(cache, f"{site.url}/a.gguf", "").glob("*.part*"))


def test_deleting_never_meets_a_newcomer_half_way(cache: Path):
    """Many take and leave one folder while somebody deletes it over and over: whoever has taken it finds what it put there."""
    directory = cache / "models" / "k"
    stop = threading.Event()
    wrong: list[str] = []

    def take() -> None:
        for turn in range(60):
            held = keep.use(directory)
            (directory / f"{threading.get_ident()}").write_text(str(turn))
            if not (directory / keep.USE).exists() or not (directory / f"{threading.get_ident()}").exists():
                wrong.append(f"turn {turn}: deleted while in use")
            held.drop()

    def delete() -> None:
        while not stop.is_set():
            (cache / "models").mkdir(parents=True, exist_ok=True)
            keep.make_room(cache, cache / "models" / "mine" / "x.part")

    deleter = threading.Thread(target=delete)
    takers = [threading.Thread(target=take) for _ in range(3)]
    for thread in (deleter, *takers):
        thread.start()
    for thread in takers:
        thread.join()
    stop.set()
    deleter.join()
    assert wrong == []


def test_a_folder_that_is_deleted_while_it_is_being_made_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """`mkdir` finds it there, and it is gone when `mkdir` looks whether it is a folder."""
    directory = cache / "models" / "k"
    directory.mkdir(parents=True)
    looks = []
    is_dir = Path.is_dir

    def gone_once(path: Path) -> bool:
        if path == directory and not looks:
            looks.append(path)
            path.rmdir()
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", gone_once)
    held = keep.use(directory)
    assert looks, "the step between was not met"
    assert (directory / keep.USE).exists()
    held.drop()


def test_a_file_in_the_place_of_a_folder_is_an_error_and_not_waited_for(cache: Path):
    directory = cache / "models" / "k"
    directory.parent.mkdir(parents=True)
    directory.write_text("not a folder")
    with pytest.raises(FileExistsError):
        keep.use(directory)


def test_a_server_holds_its_file_while_it_sleeps_and_tells_what_a_shared_cache_has(model: bytes, tmp_path: Path):
    cache = tmp_path / "shared"
    with serving(Site({"/a.gguf": model, "/b.gguf": model})) as site:
        url, other = f"{site.url}/a.gguf", f"{site.url}/b.gguf"
        key = hashlib.sha256(f"\n{url}".encode()).hexdigest()[:32]
        with Server(
            url, tmp_path / "server", cache=cache, env={"CORRAL_CACHE_SHARED": "1", "CORRAL_CACHE_LIMIT": str(len(model) + 20_000)}
        ) as server:
            status = server.until("Sleeping")
            assert status["cached"] == [key]
            with pytest.raises(Failure, match="in use or on their way take"):
                fetch(cache, other, len(model) + 20_000)
            server.load()
            with pytest.raises(Failure, match="in use or on their way take"):
                fetch(cache, other, len(model) + 20_000)
        fetch(cache, other, len(model) + 20_000)
        assert key not in keep.keys(cache)


def resident(path: Path) -> int:
    """How many of a file's pages are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
        # A private read-only map has no address for ctypes; libc makes one of its own.
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, ctypes.c_size_t(len(mapped)), 1, 2, file.fileno(), ctypes.c_long(0))
        pages = (len(mapped) + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        found = (ctypes.c_ubyte * pages)()
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), found) == 0
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)))
    return sum(page & 1 for page in found)


def test_a_warmed_file_is_in_memory(tmp_path: Path):
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(os.urandom(40 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pages = (40 << 20) // mmap.PAGESIZE
    if resident(path) > pages // 2:
        pytest.skip("the folder for temporary files is itself in memory")
    warm(str(path))
    deadline = time.monotonic() + 30
    while resident(path) < pages and time.monotonic() < deadline:
        time.sleep(0.05)
    assert resident(path) == pages


def prefetched(cache: Path, url: str, **more: str) -> subprocess.CompletedProcess[str]:
    spec = {"namespace": "n", "name": "m", "servedName": "n/m", "model": {"source": url}, "engine": {}}
    env = {**os.environ, "PYTHONPATH": str(ROOT / "server_image"), "CORRAL_SPEC": json.dumps(spec), "CORRAL_CACHE_DIR": str(cache), **more}
    command = [sys.executable, "-m", "corral_server", "prefetch", "--termination-message", str(cache.with_name("message"))]
    return subprocess.run(command, env={**env, "CORRAL_ALLOW_LOCAL_SOURCES": "1"}, capture_output=True, text=True, check=False)


def test_a_prefetch_leaves_the_file_for_the_server_and_says_what_it_did(model: bytes, cache: Path):
    with serving(Site({"/a.gguf": model})) as site:
        done = prefetched(cache, f"{site.url}/a.gguf")
        answer = json.loads(done.stdout)
        assert (done.returncode, answer["ok"], answer["bytes"]) == (0, True, len(model)), done.stderr
        assert json.loads(cache.with_name("message").read_text()) == answer
        assert fetch(cache, f"{site.url}/a.gguf") == Path(answer["path"])
        assert len(site.asked) == 1
        refused = prefetched(cache, f"{site.url}/b.gguf")
        assert refused.returncode == 1
        assert json.loads(refused.stdout)["reason"] == "SourceNotFound"
        small = prefetched(cache.with_name("small"), f"{site.url}/a.gguf", CORRAL_CACHE_LIMIT="1000")
        assert json.loads(small.stdout)["reason"] == "NoSpace"
