"""Downloads from a real web server over the loopback: complete, resumed, checked, refused."""

import hashlib
import os
import threading
from pathlib import Path

import pytest
from tests.server.web_source import Site, serving
from tests.support.gguf_files import sentence_model

from corral_server.download import files
from corral_server.download.get import Where, get
from corral_server.download.header import read_header
from corral_server.download.sources import parse_source, split_parts
from corral_server.download.web import refused_address
from corral_server.reasons import Failure


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentence_model().read_bytes()


@pytest.fixture
def where(tmp_path: Path) -> Where:
    return Where(cache=tmp_path / "cache", allow_local=True)


def quiet(_done: int, _total: int) -> None:
    pass


def failure_of(source: str, where: Where, sha256: str = "") -> Failure:
    with pytest.raises(Failure) as caught:
        get(source, sha256, where, quiet)
    return caught.value


def test_a_file_arrives_whole_is_checked_and_is_not_fetched_twice(model: bytes, where: Where):
    seen: list[tuple[int, int]] = []
    with serving(Site({"/m.gguf": model})) as site:
        digest = hashlib.sha256(model).hexdigest()
        path = get(f"{site.url}/m.gguf", digest, where, lambda done, total: seen.append((done, total)))
        assert path.read_bytes() == model
        assert seen[-1] == (len(model), len(model))
        assert not os.access(path, os.W_OK) or os.geteuid() == 0
        again = get(f"{site.url}/m.gguf", digest, where, quiet)
        assert again == path
        assert len(site.asked) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", ".use", "m.gguf", "m.gguf.json"]


def test_a_broken_transfer_is_resumed_where_it_broke(model: bytes, where: Where):
    with serving(Site({"/m.gguf": model}, break_after=[50_000, 30_000])) as site:
        path = get(f"{site.url}/m.gguf", "", where, quiet)
        assert path.read_bytes() == model
        assert [a[2] for a in site.asked] == ["", "bytes=50000-", "bytes=80000-"]


def test_a_later_attempt_goes_on_with_what_an_earlier_one_left(model: bytes, where: Where):
    with serving(Site({"/m.gguf": model}, break_after=[60_000, 0, 0, 0, 0, 0, 0])) as site:
        failure = failure_of(f"{site.url}/m.gguf", where)
        assert (failure.reason, failure.retry) == ("SourceUnreachable", True)
        assert "60000 of" in failure.message
        site.break_after.clear()
        site.asked.clear()
        assert get(f"{site.url}/m.gguf", "", where, quiet).read_bytes() == model
        assert site.asked[0][2] == "bytes=60000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(model: bytes, where: Where):
    other = sentence_model("You are llama.").read_bytes()
    with serving(Site({"/m.gguf": model}, break_after=[60_000, 0, 0, 0, 0, 0, 0])) as site:
        failure_of(f"{site.url}/m.gguf", where)
        site.files["/m.gguf"] = other
        site.break_after.clear()
        assert get(f"{site.url}/m.gguf", "", where, quiet).read_bytes() == other


def test_without_ranges_it_begins_again(model: bytes, where: Where):
    with serving(Site({"/m.gguf": model}, ranges=False, break_after=[60_000])) as site:
        assert get(f"{site.url}/m.gguf", "", where, quiet).read_bytes() == model


def test_a_wrong_checksum_says_both_and_leaves_nothing_behind(model: bytes, where: Where):
    with serving(Site({"/m.gguf": model})) as site:
        failure = failure_of(f"{site.url}/m.gguf", where, "0" * 64)
        assert failure.reason == "ChecksumMismatch"
        assert "0" * 64 in failure.message
        assert hashlib.sha256(model).hexdigest() in failure.message
        folder = files.folder(where.cache, f"{site.url}/m.gguf", "")
        assert not list(folder.glob("*.gguf*part"))


def test_a_cached_file_that_is_not_the_wanted_one_is_replaced(model: bytes, where: Where):
    other = sentence_model("You are llama.").read_bytes()
    with serving(Site({"/m.gguf": other})) as site:
        get(f"{site.url}/m.gguf", "", where, quiet)
        site.files["/m.gguf"] = model
        assert get(f"{site.url}/m.gguf", hashlib.sha256(model).hexdigest(), where, quiet).read_bytes() == model


@pytest.mark.parametrize(
    ("body", "says"),
    [(b"<html>sign in</html>" * 100, "an HTML page"), (b"", "empty"), (b"GGUF\x63\0\0\0" + bytes(64), "version 99"), (b"PK\x03\x04" * 64, "PK")],
)
def test_what_is_no_model_is_not_downloaded_to_its_end(body: bytes, says: str, where: Where):
    with serving(Site({"/m.gguf": body})) as site:
        failure = failure_of(f"{site.url}/m.gguf", where)
        assert failure.reason == "NotAGGUF"
        assert says in failure.message
        assert not failure.retry


@pytest.mark.parametrize(
    ("status", "reason", "retry"),
    [(404, "SourceNotFound", False), (401, "SourceUnauthorized", False), (403, "SourceUnauthorized", False), (503, "SourceUnreachable", True)],
)
def test_each_status_has_its_reason(status: int, reason: str, retry: bool, where: Where):
    with serving(Site(status={"/m.gguf": status})) as site:
        failure = failure_of(f"{site.url}/m.gguf", where)
        assert (failure.reason, failure.retry) == (reason, retry)
        assert f"{site.url}/m.gguf" in failure.message
        assert str(status) in failure.message


def test_nobody_there_is_unreachable(where: Where):
    with serving(Site()) as site:
        url = site.url
    failure = failure_of(f"{url}/m.gguf", where)
    assert (failure.reason, failure.retry) == ("SourceUnreachable", True)
    assert "refused" in failure.message


def test_loopback_is_refused_unless_allowed_also_behind_a_redirect(model: bytes, tmp_path: Path):
    strict = Where(cache=tmp_path / "cache", allow_local=False)
    with serving(Site({"/m.gguf": model})) as site:
        failure = failure_of(f"{site.url}/m.gguf", strict)
        assert failure.reason == "SourceRefused"
        assert "127.0.0.1" in failure.message
        assert site.asked == []
        assert failure_of(site.url.replace("127.0.0.1", "localhost") + "/m.gguf", strict).reason == "SourceRefused"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "0.0.0.0", "224.0.0.1"])
def test_addresses_that_are_never_a_source(address: str):
    assert refused_address(address)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1"])
def test_addresses_that_may_be(address: str):
    assert not refused_address(address)


def test_a_secret_is_sent_to_its_host_only(model: bytes, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "token").write_text("sesame\n")
    where = Where(cache=tmp_path / "cache", secret_dir=secret, allow_local=True)
    with (
        serving(Site({"/m.gguf": model}), host="127.0.0.2") as other,
        serving(Site(token="sesame", redirects={"/moved.gguf": f"{other.url}/m.gguf"})) as site,
    ):
        assert get(f"{site.url}/moved.gguf", "", where, quiet).read_bytes() == model
        assert site.authorizations == ["Bearer sesame"]
        assert other.authorizations == [""]


def test_a_missing_secret_is_named(tmp_path: Path):
    where = Where(cache=tmp_path / "cache", secret_dir=tmp_path / "nothing", allow_local=True)
    failure = failure_of("http://127.0.0.1:1/m.gguf", where)
    assert failure.reason == "SourceUnauthorized"
    assert "secret" in failure.message


def test_a_hub_file_is_found_through_its_endpoint_with_its_token(model: bytes, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "token").write_text("hf_sesame")
    with serving(Site({"/org/repo/resolve/main/sub/m.gguf": model}, token="hf_sesame")) as site:
        where = Where(cache=tmp_path / "cache", hub_endpoint=site.url, secret_dir=secret)
        assert get("hf://org/repo/sub/m.gguf", "", where, quiet).read_bytes() == model
        anonymous = Where(cache=tmp_path / "other", hub_endpoint=site.url)
        assert failure_of("hf://org/repo/sub/m.gguf", anonymous).reason in ("SourceUnauthorized", "SourceNotFound")
        assert failure_of("hf://org/repo/none.gguf", where).reason == "SourceNotFound"


def test_a_file_that_is_there_is_used_where_it_is(tmp_path: Path, where: Where):
    path = sentence_model()
    assert get(path.as_uri(), "", where, quiet) == path
    assert failure_of("file:///nowhere/m.gguf", where).reason == "SourceNotFound"
    assert failure_of(path.as_uri(), where, "0" * 64).reason == "ChecksumMismatch"


def test_a_claim_is_read_and_not_left(model: bytes, tmp_path: Path):
    claims = tmp_path / "claims"
    (claims / "models").mkdir(parents=True)
    (claims / "models" / "m.gguf").write_bytes(model)
    (claims / "outside.gguf").write_bytes(model)
    (claims / "models" / "link.gguf").symlink_to(claims / "outside.gguf")
    where = Where(cache=tmp_path / "cache", claims_dir=claims)
    assert get("pvc://models/m.gguf", "", where, quiet) == claims / "models" / "m.gguf"
    assert failure_of("pvc://models/link.gguf", where).reason == "SourceRefused"
    assert failure_of("pvc://models/../outside.gguf", where).reason == "UnsupportedSource"


@pytest.mark.parametrize(
    "text", ["m.gguf", "ftp://h/m.gguf", "hf://org/repo", "file://host/m.gguf", "http:///m.gguf", "pvc://claim", "https://[::bad/m"]
)
def test_other_sources_are_refused_with_what_would_be_right(text: str):
    with pytest.raises(Failure) as caught:
        parse_source(text)
    assert caught.value.reason == "UnsupportedSource"
    assert text in caught.value.message


def test_a_split_file_is_all_of_its_parts():
    assert split_parts("hf://o/r/m-00001-of-00003.gguf@v1") == [f"hf://o/r/m-0000{i}-of-00003.gguf@v1" for i in (1, 2, 3)]
    assert split_parts("http://h/m.gguf") == ["http://h/m.gguf"]
    with pytest.raises(Failure, match="first part"):
        split_parts("http://h/m-00002-of-00003.gguf")


def test_two_that_want_the_same_file_fetch_it_once(model: bytes, where: Where):
    with serving(Site({"/m.gguf": model})) as site:
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(get(f"{site.url}/m.gguf", "", where, quiet))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert len(site.asked) == 1


def test_private_sources_of_different_keys_share_nothing(where: Where):
    assert files.folder(where.cache, "http://h/m", "a") != files.folder(where.cache, "http://h/m", "b") != files.folder(where.cache, "http://h/m", "")


def test_a_header_takes_a_small_part_of_the_file(where: Where):
    big = sentence_model(size=30_000_000, layers=5).read_bytes()
    with serving(Site({"/m.gguf": big})) as site:
        found = read_header(f"{site.url}/m.gguf", where)
        assert found.file_bytes == len(big)
        assert found.header.architecture == "llama"
        assert site.asked == [("GET", "/m.gguf", "bytes=0-1048575")]
        site.ranges = False
        assert read_header(f"{site.url}/m.gguf", where).header.length == found.header.length
