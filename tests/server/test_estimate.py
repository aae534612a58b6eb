"""The estimate: from the header alone, never under what is then used, refusals in words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from tests.server.harness import ROOT, Server, anonymous
from tests.server.web_source import Site, serving
from tests.support.gguf_files import sentence_model
from tests.support.models import gemma, minilm, smollm2
from tests.support.random_models import Shape, random_model

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


def used(server: Server) -> int:
    """Anonymous memory of the server and of all its processes."""
    tree = server.tree()
    return sum(anonymous(p) for p in [server.process.pid, *tree["zygote"], *tree["children"]])


def assert_kept(promised: dict, measured: dict, held: int) -> None:
    """The parts are those that the server reports as loaded, and all of it is never too little, nor much too much."""
    parts = {k: measured[k] for k in ("weights", "kvCache", "compute")}
    assert {k: promised[k] for k in parts} == parts
    total = held + promised["weights"] - measured["repacked"]
    assert total <= promised["total"] <= total * 1.15


def split_in_two(path: Path, folder: Path) -> Path:
    """The first part of the same model in two files; the keys are in the first."""
    source = gguf.GGUFReader(path)
    half = len(source.tensors) // 2
    for number, tensors in enumerate((source.tensors[:half], source.tensors[half:])):
        writer = gguf.GGUFWriter(folder / f"m-{number + 1:05d}-of-00002.gguf", "llama")
        for key, field in source.fields.items() if number == 0 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1] if len(field.types) > 1 else None)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(source.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / "m-00001-of-00002.gguf"


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
        held = used(server)
    assert_kept(promised, status["memory"], held)


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


def test_each_layer_has_the_cache_that_it_will_have(tmp_path: Path):
    windows = estimate(str(random_model(Shape("gemma3", layers=7, window=256))), tmp_path, spec={"engine": {"contextLength": 4096}})["perLayer"]
    # Six layers look back 256 tokens, the sixth of seven at everything.
    assert [n for n, _, _ in windows] == [5, 1, 1]
    assert windows[1][2] > 4 * windows[0][2]
    assert windows[0][2] == windows[2][2] > 0
    states = estimate(str(random_model(Shape("lfm2"))), tmp_path)["perLayer"]
    assert states[0][2] < states[1][2] / 100


def test_the_parts_of_a_split_file_count_with_their_layers(tmp_path: Path):
    whole = sentence_model(size=20_000_000, layers=4)
    split = estimate(split_in_two(whole, tmp_path).as_uri(), tmp_path)
    one = estimate(str(whole), tmp_path)
    assert split["perLayer"] == one["perLayer"]
    assert {k: split[k] for k in ("weights", "kvCache", "input", "output")} == {k: one[k] for k in ("weights", "kvCache", "input", "output")}
