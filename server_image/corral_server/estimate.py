"""`corral_server estimate`: what a model will need, from its header alone, as one line of JSON.

Fetches the header, writes it into a sparse file of the full size and lets `probe` plan it with llama.cpp in a process that may die.
A refused model is an answer, not an error: the exit code is 0.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corral_server.download.get import Where
from corral_server.download.header import HeaderBytes, read_header
from corral_server.download.sources import split_parts
from corral_server.kv_layers import kv_shares
from corral_server.overhead import SHOWN, SHOWN_PER_SLOT, beside_bytes, overhead_bytes
from corral_server.reasons import UNSUPPORTED_MODEL, UNSUPPORTED_SOURCE, Failure
from corral_server.settings import Settings
from corral_server.spec import ServerSpec, parse_spec

_TIMEOUT = 120.0
_ROOM = 16 << 30
_MESSAGE_LIMIT = 4096


def run(source: str, spec_text: str, message_file: str, settings: Settings) -> int:
    """Print the estimate; always 0, so that a Job does not retry by itself."""
    try:
        result = estimate(source, spec_text or settings.spec, settings)
    except Failure as failure:
        result = {"ok": False, "reason": failure.reason, "message": failure.message[:1500], "retry": failure.retry}
    line = json.dumps(result, ensure_ascii=False)
    print(line)  # noqa: T201  this is the command's output
    if message_file:
        Path(message_file).write_text(line)
    return 0


def estimate(source: str, spec_text: str, settings: Settings) -> dict[str, Any]:
    spec_document = json.loads(spec_text) if spec_text else {}
    if source and "://" not in source:
        source = Path(source).resolve().as_uri()
    if source:
        spec_document["model"] = {**(spec_document.get("model") or {}), "source": source}
    if not (spec_document.get("model") or {}).get("source"):
        raise Failure(UNSUPPORTED_SOURCE, "no source was given, and CORRAL_SPEC names none")
    spec = parse_spec(json.dumps(spec_document))
    where = Where(
        cache=settings.cache_dir,
        cache_key=spec.cache_key,
        secret_dir=settings.secret_dir,
        claims_dir=settings.claims_dir,
        hub_endpoint=settings.hub_endpoint,
        allow_local=settings.allow_local_sources,
    )
    parts = [read_header(part, where) for part in split_parts(spec.source)]
    adapters = sum(read_header(adapter.source, where).file_bytes for adapter in spec.engine.adapters)
    draft = spec.engine.draft_source
    draft_parts = [read_header(part, where) for part in split_parts(draft)] if draft else []
    with tempfile.TemporaryDirectory(prefix="corral-estimate-") as folder:
        order = _order(parts, spec.source, Path(folder) / "model")
        order["engine"] = spec_document.get("engine") or {}
        if draft:
            order["draft"] = _order(draft_parts, draft, Path(folder) / "draft")
        if spec.projector:
            order["projector"] = _order([read_header(spec.projector, where)], spec.projector, Path(folder) / "projector")
        probed = _probe(order)
    return _result(spec, parts, probed, adapters)


def _names(source: str) -> list[str]:
    return [re.split(r"[@?]", p)[0].rsplit("/", 1)[-1] for p in split_parts(source)]


def _sparse(parts: list[HeaderBytes], source: str, folder: Path) -> Path:
    """Files of the full size that hold nothing but their headers."""
    names = _names(source)
    folder.mkdir()
    for name, part in zip(names, parts, strict=True):
        file = folder / (name if len(parts) > 1 else "model.gguf")
        file.write_bytes(part.data)
        os.truncate(file, max(part.file_bytes, part.header.data_start))
    return folder / (names[0] if len(parts) > 1 else "model.gguf")


def _order(parts: list[HeaderBytes], source: str, folder: Path) -> dict[str, Any]:
    path = _sparse(parts, source, folder)
    return {
        "path": str(path),
        "source": source,
        "headerBytes": len(parts[0].data),
        "fileBytes": parts[0].file_bytes,
        "others": [[str(folder / name), len(part.data)] for name, part in zip(_names(source)[1:], parts[1:], strict=True)],
    }


def _probe(order: dict[str, Any]) -> dict[str, Any]:
    source = order["source"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "corral_server.probe"],
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1", "CUDA_VISIBLE_DEVICES": ""},
            preexec_fn=_limit,
        )
    except subprocess.TimeoutExpired:
        raise Failure(UNSUPPORTED_MODEL, f"{source}: llama.cpp did not finish planning the model within {_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
        raise Failure(UNSUPPORTED_MODEL, f"{source}: llama.cpp failed on the header (exit code {done.returncode}): {' | '.join(said)}")
    result: dict[str, Any] = json.loads(done.stdout)
    if "failed" in result:
        raise Failure(result["failed"], result["message"] if source in result["message"] else f"{source}: {result['message']}")
    return result


def _limit() -> None:
    """A header that asks for absurd sizes must not take the machine with it."""
    resource.setrlimit(resource.RLIMIT_AS, (_ROOM, _ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _result(spec: ServerSpec, parts: list[HeaderBytes], probed: dict[str, Any], adapters: int) -> dict[str, Any]:
    """`adapters`: the bytes of their files; their tensors lie beside those of the layers that they change."""
    meta, plan, buffers = probed["meta"], probed["plan"], probed["buffers"]
    arch = meta.get("general.architecture", "")
    overhead = overhead_bytes(probed["vocabulary"], plan["cells"], plan["microBatch"] if plan["pooling"] else plan["outputs"])
    layers, entrance, exit_bytes = _layers(probed["tensors"], probed["layers"])
    layers = [size + adapters // max(len(layers), 1) for size in layers]
    heads = parts[0].header.keys.get(f"{arch}.attention.head_count_kv")
    caches = kv_shares(probed["kvLines"], buffers["kvCache"], probed["layers"], heads)
    if draft := probed["draft"]:
        # Its layers go where the model's go, in the same proportions.
        own, first, last = _layers(draft["tensors"], draft["layers"])
        layers, caches = _spread(sum(own), layers), _spread(draft["buffers"]["kvCache"], caches)
        entrance, exit_bytes = entrance + first, exit_bytes + last
        buffers = {kind: size + draft["buffers"][kind] for kind, size in buffers.items()}
        overhead += beside_bytes(draft["vocabulary"], plan["cells"], spec.engine.slots)
    if projector := probed["projector"]:
        # It lies whole on the device that also has the output.
        exit_bytes += projector["weights"]
        buffers = {kind: size + projector.get(kind, 0) for kind, size in buffers.items()}
        overhead += SHOWN + spec.engine.slots * SHOWN_PER_SLOT
    weights = buffers["weights"] + adapters
    result = {
        "ok": True,
        "architecture": arch,
        "contextLength": plan["contextLength"],
        "trainedContext": int(meta.get(f"{arch}.context_length", 0) or 0),
        "layers": probed["layers"],
        "weights": weights,
        "kvCache": buffers["kvCache"],
        "compute": buffers["compute"],
        "overhead": overhead,
        "total": weights + buffers["kvCache"] + buffers["compute"] + overhead,
        "fileBytes": sum(p.file_bytes for p in parts),
        "digest": parts[0].digest,
        "pooling": plan["pooling"],
        "chat": not plan["pooling"],
        "perLayer": _run_lengths(layers, caches),
        "input": entrance,
        "output": exit_bytes,
    }
    if len(json.dumps(result)) > _MESSAGE_LIMIT:
        # Hundreds of unlike layers: their mean is what still fits into a termination message.
        mean = [sum(layers) // max(len(layers), 1)] * len(layers)
        result["perLayer"] = _run_lengths(mean, [sum(caches) // max(len(caches), 1)] * len(caches))
    return result


def _spread(size: int, onto: list[int]) -> list[int]:
    """The layers with `size` bytes more in all, as evenly as whole bytes go."""
    share, rest = divmod(size, max(len(onto), 1))
    return [each + share + (rest if index == len(onto) - 1 else 0) for index, each in enumerate(onto)]


def _layers(sizes: Mapping[str, int], count: int) -> tuple[list[int], int, int]:
    """Bytes per layer, of the input tensors (they stay on the host) and of those that go with the last device."""
    layers, entrance, leaving = [0] * count, 0, 0
    for name, size in sizes.items():
        match = re.match(r"blk\.(\d+)\.", name)
        if match and int(match[1]) < count:
            layers[int(match[1])] += size
        elif name.startswith(("token_embd", "position_embd", "token_types", "per_layer_token_embd")):
            entrance += size
        else:
            leaving += size
    if "output.weight" not in sizes and leaving:
        # Tied embeddings: the output matrix is a second copy of the input's on the last device.
        leaving += sizes.get("token_embd.weight", 0)
    return layers, entrance, leaving


def _run_lengths(weights: list[int], caches: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for weight, cache in zip(weights, caches, strict=True):
        if runs and runs[-1][1:] == [weight, cache]:
            runs[-1][0] += 1
        else:
            runs.append([1, weight, cache])
    return runs
