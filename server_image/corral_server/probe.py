"""The measuring half of the estimate, in a process of its own: lets llama.cpp plan a model without loading it.

Reads an order as JSON on stdin, answers with one line of JSON on stdout. It parses a stranger's file in C++, so it may die; its parent copes.
"""

import json
import sys
import time
from typing import Any

from corral_server.engine.draft_model import open_draft
from corral_server.engine.library import L, Log
from corral_server.engine.media_memory import projector_memory
from corral_server.engine.memory import breakdown, tensor_bytes
from corral_server.engine.model import load_model, make_context, metadata
from corral_server.engine.plan import EnginePlan, ModelFacts, make_plan
from corral_server.gguf_header import parse_header
from corral_server.reasons import NOT_A_GGUF, Failure
from corral_server.spec import parse_engine


def tensor_sizes(order: dict[str, Any]) -> dict[str, int]:
    """Bytes of each tensor of a model; Failure when its file cannot hold them."""
    with open(order["path"], "rb") as file:  # noqa: PTH123
        header = parse_header(file.read(order["headerBytes"]), order["source"])
    sizes = {t.name: tensor_bytes(t.type, list(t.shape)) for t in header.tensors}
    for other, length in order["others"]:
        with open(other, "rb") as file:  # noqa: PTH123
            part = parse_header(file.read(length), order["source"])
        sizes.update({t.name: tensor_bytes(t.type, list(t.shape)) for t in part.tensors})
    for tensor in header.tensors:
        end = header.data_start + tensor.offset + sizes[tensor.name]
        if not order["others"] and end > order["fileBytes"]:
            raise Failure(
                NOT_A_GGUF,
                f"{order['source']} is cut short: tensor {tensor.name} ends at byte {end}, the file has {order['fileBytes']}",
            )
    return sizes


def measure(order: dict[str, Any]) -> dict[str, Any]:
    path = order["path"]
    sizes = tensor_sizes(order)
    log = Log(keep_all=True)
    L.llama_backend_init()
    begin = time.perf_counter()
    model = load_model(path, log, gpu_layers=0, no_alloc=True)
    meta = metadata(model)
    plan = make_plan(parse_engine(order["engine"]), ModelFacts.of(meta))
    context = make_context(model, plan, log)
    said = [line for line in log.everything or () if "llama_kv_cache" in line or "llama_memory_recurrent" in line]
    # In its own process this may end it: a stranger's file is read in C++ here too.
    seeing = order.get("projector")
    projector = projector_memory(seeing["path"], offload=False, flash_attention=plan.flash_attention, source=seeing["source"]) if seeing else None
    draft = _measure_draft(order["draft"], model, plan, log) if order.get("draft") else None
    return {
        "meta": {k: v for k, v in meta.items() if len(v) < 200},
        "hasTemplate": any(k.startswith("tokenizer.chat_template") for k in meta),
        "plan": {
            "contextLength": plan.context_length,
            "cells": plan.cells,
            "pooling": plan.pooling,
            "microBatch": plan.micro_batch,
            "outputs": plan.outputs,
        },
        "layers": L.llama_model_n_layer(model),
        "vocabulary": L.llama_vocab_n_tokens(L.llama_model_get_vocab(model)),
        "buffers": breakdown(context),
        "tensors": sizes,
        "kvLines": said,
        "draft": draft,
        "projector": projector,
        "seconds": time.perf_counter() - begin,
    }


def _measure_draft(order: dict[str, Any], model: Any, plan: EnginePlan, log: Log) -> dict[str, Any]:
    sizes = tensor_sizes(order)
    draft = open_draft(order["path"], model, plan, log, no_alloc=True)
    return {
        "layers": L.llama_model_n_layer(draft.model), "vocabulary": draft.vocabulary, "buffers": breakdown(draft.context), "tensors": sizes,
    }  # fmt: skip


def main() -> None:
    order = json.loads(sys.stdin.readline())
    try:
        result = measure(order)
    except Failure as failure:
        result = {"failed": failure.reason, "message": failure.message}
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
