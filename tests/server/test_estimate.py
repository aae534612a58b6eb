"""The estimate: from the header alone, never under what is then used, refusals in words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.server.harness import ROOT, Server
from tests.server.web_source import Site, serving
from tests.support.gguf_files import sentence_model
from tests.support.models import gemma, minilm, smollm2

pytestmark = pytest.mark.model


def estimate(source: str, tmp_path: Path, *, spec: dict | None = None, **env: str) -> dict:
    message = tmp_path / "message"
    done = subprocess.run(
        [sys.executable, "-m", "corral_server", "estimate", source, "--termination-message", str(message), "--spec", json.dumps(spec or {})],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "server_image"),
            "CORRAL_CACHE_DIR": str(tmp_path / "cache"),
            "CORRAL_ALLOW_LOCAL_SOURCES": "1",
            **env,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert message.read_text() == done.stdout.strip()
    assert len(message.read_bytes()) <= 4096
    return json.loads(done.stdout)


def anonymous(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss_Anon:"))


@pytest.mark.parametrize("name", ["smollm2", "gemma", "minilm"])
def test_what_was_promised_covers_what_is_used_and_not_much_more(name: str, tmp_path: Path):
    path = {"smollm2": smollm2, "gemma": gemma, "minilm": minilm}[name]()
    # The cells are kept small here, so that the processes themselves weigh as much as they ever do.
    engine = {"contextLength": 512, "kvTokens": 1024}
    spec = {"engine": engine} if name != "minilm" else {}
    promised = estimate(path.as_uri(), tmp_path, spec=spec)
    with Server(path.as_uri(), tmp_path / "run", engine=spec.get("engine")) as server:
        status = server.load()
        for index in range(3):
            if name == "minilm":
                server.http.post("/v1/embeddings", json={"input": [f"word {index} " * 100] * 8}).raise_for_status()
            else:
                ask = {"prompt": f"{index} " + "words and more words " * 30, "max_tokens": 8, "n": 4, "temperature": 1.0, "logprobs": 5}
                server.http.post("/v1/completions", json=ask).raise_for_status()
        tree = server.tree()
        used = sum(anonymous(p) for p in [server.process.pid, *tree["zygote"], *tree["children"]])
        measured = {k: status["memory"][k] for k in ("weights", "kvCache", "compute")}
    assert {k: promised[k] for k in measured} == measured
    total = used + promised["weights"]
    assert total <= promised["total"] <= total * 1.15


def test_the_parts_add_up(tmp_path: Path):
    answer = estimate(smollm2().as_uri(), tmp_path)
    assert answer["total"] == sum(answer[k] for k in ("weights", "kvCache", "compute", "overhead"))
    assert (answer["architecture"], answer["layers"], answer["contextLength"], answer["trainedContext"]) == ("llama", 30, 8192, 8192)
    assert sum(run[0] for run in answer["perLayer"]) == 30
    assert sum(n * kv for n, _, kv in answer["perLayer"]) == answer["kvCache"]
    assert answer["chat"]
    assert answer["pooling"] == ""
    halved = estimate(smollm2().as_uri(), tmp_path, spec={"engine": {"kvTokens": 8192, "kvCache": "Q8_0"}})
    assert halved["kvCache"] < answer["kvCache"] * 0.27


def test_a_path_and_a_web_address_give_the_same_without_fetching_the_weights(tmp_path: Path):
    path = sentence_model(size=30_000_000, layers=5)
    local = estimate(str(path), tmp_path)
    with serving(Site({"/m.gguf": path.read_bytes()})) as site:
        remote = estimate(f"{site.url}/m.gguf", tmp_path)
        assert len(site.asked) == 1
    assert {k: v for k, v in remote.items() if k != "digest"} == {k: v for k, v in local.items() if k != "digest"}


def test_a_refusal_is_an_answer(tmp_path: Path):
    page, short, odd = tmp_path / "page.gguf", tmp_path / "short.gguf", tmp_path / "odd.gguf"
    data = sentence_model().read_bytes()
    page.write_bytes(b"<html>no</html>" * 9)
    short.write_bytes(data[: len(data) - 1000])
    at = data.find(b"llama", data.find(b"general.architecture"))
    odd.write_bytes(data[:at] + b"zebra" + data[at + 5 :])
    for source, reason, says in (
        (page.as_uri(), "NotAGGUF", "HTML"),
        (short.as_uri(), "NotAGGUF", "cut short"),
        (odd.as_uri(), "UnsupportedModel", "zebra"),
        ("file:///nowhere.gguf", "SourceNotFound", "nowhere"),
        ("ftp://h/m.gguf", "UnsupportedSource", "ftp"),
    ):
        answer = estimate(source, tmp_path)
        assert answer == {"ok": False, "reason": reason, "message": answer["message"], "retry": False}
        assert says in answer["message"]
    assert estimate("http://127.0.0.1:1/m.gguf", tmp_path)["retry"] is True
    refused = estimate("http://127.0.0.1:1/m.gguf", tmp_path, CORRAL_ALLOW_LOCAL_SOURCES="")
    assert refused["reason"] in ("SourceUnreachable", "SourceRefused")
    assert estimate(smollm2().as_uri(), tmp_path, spec={"engine": {"slots": 0}})["reason"] == "InvalidEngineSettings"
