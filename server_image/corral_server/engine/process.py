"""The engine process from its fork to its end: load what it is told, warm up, run the loop, leave.

Called in a child of the zygote. It initialises llama.cpp's backend itself, so the zygote never touches a device.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corral_server import sampling_defaults
from corral_server.channel import BlockingChannel, Message
from corral_server.engine.adapters import load_adapters
from corral_server.engine.draft_model import DraftModel, forgets, open_draft
from corral_server.engine.drafter import Drafter
from corral_server.engine.kept import kept
from corral_server.engine.library import L, Log
from corral_server.engine.loop import Loop
from corral_server.engine.memory import breakdown
from corral_server.engine.model import load_model, make_context, metadata, model_format
from corral_server.engine.plan import EnginePlan, ModelFacts, make_plan
from corral_server.engine.states import StateStore, state_key
from corral_server.engine.threads import Threads, read
from corral_server.engine.vocabulary import Vocabulary
from corral_server.reasons import INVALID_ENGINE_SETTINGS, LOAD_FAILED, Failure
from corral_server.spec import EngineSpec, parse_engine

if TYPE_CHECKING:
    from corral_server.engine.media_projector import Projector

NO_GPU = "this build of llama.cpp has no GPU backend: the model runs on the CPU and in main memory, its GPU is only reserved"


def prepare() -> None:
    """Nothing but the imports above: what the zygote does once, so that no fork pays for it."""


def main(sock: socket.socket) -> None:
    channel = BlockingChannel(sock)
    order = channel.receive(None)[0]
    log = Log()
    try:
        loaded = _load(order, channel, log)
    except Failure as failure:
        channel.send({"t": "failed", "reason": failure.reason, "message": failure.message})
        return
    except Exception as error:
        channel.send({"t": "failed", "reason": LOAD_FAILED, "message": f"{type(error).__name__}: {error}"})
        return
    Loop(channel, *loaded).run()
    # Freed by the exit, at once and surely; freeing first would only take time.


def _load(
    order: Message, channel: BlockingChannel, log: Log
) -> tuple[Any, Any, EnginePlan, Vocabulary, StateStore | None, Threads, Path | None, int, list[Any], Drafter | None, "Projector | None"]:
    on_host = order["deviceKind"] == "host"
    show(order["devices"], on_host=on_host)
    begin, before = time.perf_counter(), read()
    L.llama_backend_init()
    offload = not on_host and bool(L.llama_supports_gpu_offload())
    engine = parse_engine(order["engine"])
    files = [order["path"], *([order["draft"]] if order.get("draft") else [])]
    progress = _progress(channel, [Path(f).stat().st_size for f in files])
    split, gpu_layers = order.get("split") if offload else None, engine.gpu_layers if offload else 0
    model = kept(order["path"]) if on_host else None
    if model is None:
        model = load_model(order["path"], log, gpu_layers=gpu_layers, split=split, progress=progress[0])
    meta = metadata(model)
    plan = make_plan(engine, ModelFacts.of(meta))
    threads = order["threads"]
    # Before the context: it reserves room for what the adapters add to a step.
    adapters = load_adapters(model, order.get("adapters") or [], log)
    context = make_context(model, plan, log, threads=threads)
    projector = _projector(order, model, plan, log, offload=offload)
    vocabulary = Vocabulary(model)
    draft = None
    if order.get("draft"):
        draft = open_draft(order["draft"], model, plan, log, gpu_layers=gpu_layers, split=split, threads=threads, progress=progress[1])
    load_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for each in (context, draft.context) if draft else (context,):
        _warm_up(each, vocabulary)
    warm_seconds = time.perf_counter() - begin
    channel.send(
        {
            "t": "loaded",
            "model": describe(model, meta, plan, vocabulary, draft, projector) | ({} if on_host or offload else {"warning": NO_GPU}),
            "memory": _memory(context, draft, projector),
            "timings": {"load": load_seconds, "warmup": warm_seconds},
            # A build with a GPU backend would start it in the zygote.
            "keepable": on_host and not L.llama_supports_gpu_offload(),
        }
    )
    states, scratch = _states(order, engine, plan, model), _scratch(order, engine, plan)
    drafter = Drafter(draft, vocabulary) if draft else None
    counted = Threads([context, draft.context] if draft else [context], threads, before)
    return model, context, plan, vocabulary, states, counted, scratch, engine.prompt_cache_bytes, adapters, drafter, projector


def _progress(channel: BlockingChannel, sizes: list[int]) -> list[Callable[[float], None]]:
    """What hears of the load of each file: they count by their sizes, and leave a tenth for what follows."""
    whole, last = max(sum(sizes), 1), 0.0

    def reporter(before: int, size: int) -> Callable[[float], None]:
        def report(value: float) -> None:
            nonlocal last
            share = (before + value * size) / whole
            if share - last >= 0.01:
                last = share
                channel.send({"t": "progress", "value": share * 0.9})

        return report

    return [reporter(sum(sizes[:i]), size) for i, size in enumerate(sizes)]


def _memory(context: Any, draft: DraftModel | None, projector: "Projector | None") -> dict[str, int]:
    held = breakdown(context)
    if projector is not None:
        # Its weights are read, not mapped: anonymous memory, like those in another order.
        weights, compute = projector.memory["weights"], projector.memory["compute"]
        held = {**held, "weights": held["weights"] + weights, "repacked": held["repacked"] + weights, "compute": held["compute"] + compute}
    beside = breakdown(draft.context) if draft else {}
    return {kind: size + beside.get(kind, 0) for kind, size in held.items()}


def _projector(order: Message, model: Any, plan: EnginePlan, log: Log, *, offload: bool) -> "Projector | None":
    if not order.get("projector"):
        return None
    if plan.embeds:
        raise Failure(INVALID_ENGINE_SETTINGS, "model.projector is set for a model that is served for embeddings; remove one of the two")
    from corral_server.engine.media_projector import Projector  # noqa: PLC0415  its library costs memory

    return Projector(order["projector"], model, plan, log, threads=order["threads"], offload=offload)


def _scratch(order: Message, engine: EngineSpec, plan: EnginePlan) -> Path | None:
    """The folder for checkpoints; they have no names there."""
    if not order.get("states") or not engine.prompt_cache_bytes or plan.embeds:
        return None
    folder = Path(order["states"])
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def show(devices: list[str], *, on_host: bool) -> None:
    """Make these devices, in their order, the ones that a GPU backend will see."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if on_host:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif "NVIDIA_VISIBLE_DEVICES" not in os.environ or all(device.startswith(("GPU-", "MIG-")) for device in devices):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    else:
        # A container that sees only some devices numbers them anew: the node's number would mean another one, or none.
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def _states(order: Message, engine: EngineSpec, plan: EnginePlan, model: Any) -> StateStore | None:
    """The store of saved states, when the specification wants one and the disk gives one."""
    if not order.get("states") or not engine.keep_on_sleep or not engine.prompt_cache_bytes or plan.embeds:
        return None
    file = Path(order["path"]).stat()
    key = state_key(
        {
            "file": [order["path"], file.st_size, file.st_mtime_ns],
            "library": L.llama_version().decode(),
            "plan": asdict(plan),
            "device": order["deviceKind"],
            "adapters": [[a["path"], Path(a["path"]).stat().st_mtime_ns] for a in order.get("adapters") or []],
        }
    )
    try:
        return StateStore(Path(order["states"]), key, engine.prompt_cache_bytes, max(L.llama_model_n_swa(model), 0))
    except OSError:
        return None


def _warm_up(context: Any, vocabulary: Vocabulary) -> None:
    """One token through the whole graph: the first decode builds it, and no client should wait for that. On one thread, as the rest of the load:
    where others are at work, several would wait for each other.
    """
    threads = L.llama_n_threads(context), L.llama_n_threads_batch(context)
    L.llama_set_n_threads(context, 1, 1)
    token = vocabulary.bos if vocabulary.bos >= 0 else max(vocabulary.eos, 0)
    array = (L.llama_token * 1)(token)
    L.llama_set_warmup(context, True)
    L.llama_decode(context, L.llama_batch_get_one(array, 1))
    L.llama_set_warmup(context, False)
    memory = L.llama_get_memory(context)
    if memory:
        L.llama_memory_clear(memory, True)
    L.llama_synchronize(context)
    L.llama_set_n_threads(context, *threads)
    L.llama_perf_context_reset(context)


def describe(
    model: Any, meta: dict[str, str], plan: EnginePlan, vocabulary: Vocabulary, draft: DraftModel | None, projector: "Projector | None"
) -> Message:
    arch = meta.get("general.architecture", "")
    templates = {k.removeprefix("tokenizer.chat_template").lstrip("."): v for k, v in meta.items() if k.startswith("tokenizer.chat_template")}
    return {
        "architecture": arch,
        "name": meta.get("general.name", ""),
        "contextLength": plan.context_length,
        "trainedContext": int(meta.get(f"{arch}.context_length", 0) or 0),
        "cells": plan.cells,
        "slots": plan.slots,
        "pooling": plan.pooling,
        "drafts": "" if not plan.drafted or forgets(model) else "draft-simple" if draft else "ngram-simple",
        "embeddingLength": L.llama_model_n_embd_out(model),
        "vocabulary": vocabulary.size,
        "vocabularyType": vocabulary.kind,
        "format": model_format(model),
        "parameters": L.llama_model_n_params(model),
        "size": L.llama_model_size(model),
        "templates": templates,
        "bos": vocabulary.text(vocabulary.bos),
        "eos": vocabulary.text(vocabulary.eos),
        "addBos": vocabulary.add_bos,
        "fim": vocabulary.fim,
        "sampling": sampling_defaults.of_file(meta),
        "media": projector.describe() if projector is not None else {},
    }
