"""The test hub behaves as a hub does: towards huggingface_hub, towards a client that resumes, and in each fault that it gives on demand."""

import hashlib
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from e2e.hub import serve
from huggingface_hub import errors

TOKEN = "hf_test"
LARGE, SMALL = bytes(range(256)) * 50_000, b'{"a": 1}'


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hub")
    for organisation in ("open", "closed"):
        repository = folder / organisation / "model"
        (repository / "sub").mkdir(parents=True)
        (repository / "sub" / "weights.gguf").write_bytes(LARGE)
        (repository / "config.json").write_bytes(SMALL)
    store = serve.Hub(("127.0.0.1", 0), folder, {})
    server = serve.Hub(("127.0.0.1", 0), folder, {"closed": TOKEN}, store_port=store.server_address[1])
    store.key = server.key
    threads = [threading.Thread(target=each.serve_forever) for each in (server, store)]
    for thread in threads:
        thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    for each in (server, store):
        each.shutdown()
        each.server_close()
    for thread in threads:
        thread.join()


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read(), {name.lower(): value for name, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), {name.lower(): value for name, value in error.headers.items()}


def test_huggingface_hub_downloads_large_and_small_files(hub: str, tmp_path: Path) -> None:
    for name, content in (("sub/weights.gguf", LARGE), ("config.json", SMALL)):
        path = huggingface_hub.hf_hub_download("open/model", name, endpoint=hub, cache_dir=tmp_path, token=False)
        assert Path(path).read_bytes() == content


def test_a_private_repository_needs_its_token_and_the_file_store_never_sees_it(hub: str, tmp_path: Path) -> None:
    path = huggingface_hub.hf_hub_download("closed/model", "sub/weights.gguf", endpoint=hub, cache_dir=tmp_path, token=TOKEN)
    assert Path(path).read_bytes() == LARGE
    with pytest.raises(errors.GatedRepoError):
        huggingface_hub.hf_hub_download("closed/model", "config.json", endpoint=hub, cache_dir=tmp_path, token="hf_other")
    with pytest.raises(errors.RepositoryNotFoundError):
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url("closed/model", "config.json", endpoint=hub), token=False, endpoint=hub)


def test_metadata_carries_size_digest_and_commit(hub: str) -> None:
    meta = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url("open/model", "sub/weights.gguf", endpoint=hub), token=False, endpoint=hub)
    assert meta.size == len(LARGE)
    assert meta.etag == hashlib.sha256(LARGE).hexdigest()
    assert meta.commit_hash == huggingface_hub.HfApi(endpoint=hub, token=False).model_info("open/model").sha


def test_what_is_missing_is_told_apart(hub: str) -> None:
    def ask(repository: str, name: str, revision: str = "main") -> None:
        url = huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=hub)
        huggingface_hub.get_hf_file_metadata(url, token=False, endpoint=hub)

    with pytest.raises(errors.EntryNotFoundError):
        ask("open/model", "other.gguf")
    with pytest.raises(errors.RevisionNotFoundError):
        ask("open/model", "config.json", "v9")
    with pytest.raises(errors.RepositoryNotFoundError):
        ask("open/other", "config.json")


def test_a_repository_is_listed(hub: str) -> None:
    api = huggingface_hub.HfApi(endpoint=hub, token=False)
    assert api.list_repo_files("open/model") == ["config.json", "sub/weights.gguf"]


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=0-9", 206, LARGE[:10]),
        ("bytes=1000-", 206, LARGE[1000:]),
        ("bytes=-5", 206, LARGE[-5:]),
        (f"bytes={len(LARGE) - 1}-", 206, LARGE[-1:]),
        ("bytes=5-99999999", 206, LARGE[5:]),
        ("bytes=9-5", 200, LARGE),
        ("lines=1-2", 200, LARGE),
        (f"bytes={len(LARGE)}-", 416, None),
    ],
)
def test_ranges(hub: str, asked: str, status: int, content: bytes | None) -> None:
    found, body, headers = get(f"{hub}/files/open/model/sub/weights.gguf", Range=asked)
    assert found == status
    if content is None:
        assert headers["content-range"] == f"bytes */{len(LARGE)}"
    else:
        assert body == content


def test_a_changed_file_is_sent_whole(hub: str) -> None:
    url = f"{hub}/files/open/model/sub/weights.gguf"
    tag = get(url, "HEAD")[2]["etag"]
    assert get(url, Range="bytes=10-19", If_Range=tag)[0] == 206
    assert get(url, Range="bytes=10-19", If_Range='"old"')[:2] == (200, LARGE)


def test_paths_do_not_leave_the_folder(hub: str) -> None:
    for path in (
        "/files/../../etc/passwd",
        "/files/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/files//etc/passwd",
        "/open/model/resolve/main/%2e%2e/%2e%2e/x",
    ):
        assert get(hub + path)[0] == 404


def test_faults(hub: str) -> None:
    path = "open/model/config.json"
    assert get(f"{hub}/files/nothing")[0] == 404
    assert get(f"{hub}/faults/not-a-gguf")[1].startswith(b"<!doctype html>")
    assert get(f"{hub}/faults/status/503")[2]["retry-after"] == "1"
    assert get(f"{hub}/faults/token/abc/{path}")[0] == 401
    assert get(f"{hub}/faults/token/abc/{path}", Authorization="Bearer abc")[:2] == (200, SMALL)
    assert get(f"{hub}/faults/no-range/{path}", Range="bytes=1-2")[:2] == (200, SMALL)
    assert get(f"{hub}/faults/redirect/{path}")[:2] == (200, SMALL)
    assert get(f"{hub}/faults/redirect-to?{hub}/files/{path}")[:2] == (200, SMALL)
    assert [get(f"{hub}/faults/first/2/503/{path}")[0] for _ in range(4)] == [503, 503, 200, 200]
    assert get(f"{hub}/signed/{path}?signature=wrong")[0] == 403


def test_a_truncated_file_ends_early(hub: str) -> None:
    with urllib.request.urlopen(f"{hub}/faults/truncated/open/model/config.json", timeout=10) as response:
        assert response.headers["Content-Length"] == str(len(SMALL))
        with pytest.raises(Exception, match="IncompleteRead"):
            response.read()


def test_a_slow_file_arrives_whole(hub: str) -> None:
    assert get(f"{hub}/faults/slow/80/open/model/config.json")[1] == SMALL
