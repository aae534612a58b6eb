"""The model that this server serves, as the operator wrote it: parsed from CORRAL_SPEC with errors that name the field.

Pure; defaults that need the model file are applied in `engine.plan`.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral_server import sampling_defaults
from corral_server.quantities import parse_bytes
from corral_server.reasons import INVALID_ENGINE_SETTINGS, Failure, wrong_setting

KV_TYPES = ("F32", "F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
EFFORTS = ("", "None", "Minimal", "Low", "Medium", "High")
POOLINGS = ("", "None", "Mean", "CLS", "Last", "Rank")


@dataclass(frozen=True)
class Adapter:
    name: str
    source: str
    scale: float = 1.0


@dataclass(frozen=True)
class Preset:
    """One more name for the model, with settings of its own."""

    name: str
    adapter: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    reasoning_effort: str = ""
    """As requests have it: `none`, `low`, ...; empty: as the template has it."""
    system_prompt: str = ""


@dataclass(frozen=True)
class EngineSpec:
    """`spec.engine` of the ModelDeployment. Zero or empty: decided when the file is known."""

    context_length: int = 0
    slots: int = 4
    kv_tokens: int = 0
    threads: int = 0
    micro_batch: int = 512
    prompt_cache_bytes: int = 256 << 20
    keep_on_sleep: bool = True
    draft_source: str = ""
    draft_ngram: bool = False
    reasoning: str = "Auto"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    kv_cache: str = "F16"
    flash_attention: str = "Auto"
    gpu_layers: int = -1
    pooling: str = ""
    adapters: tuple[Adapter, ...] = ()
    presets: tuple[Preset, ...] = ()
    chat_template: str = ""


@dataclass(frozen=True)
class ServerSpec:
    source: str
    namespace: str = ""
    name: str = ""
    served_name: str = ""
    sha256: str = ""
    projector: str = ""
    cache_key: str = ""
    engine: EngineSpec = field(default_factory=EngineSpec)

    @property
    def beside(self) -> tuple[str, ...]:
        """Sources of what goes with the model: its projector, its draft, its adapters."""
        return tuple(s for s in (self.projector, self.engine.draft_source, *(a.source for a in self.engine.adapters)) if s)


def _object(raw: object, path: str) -> dict[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise wrong_setting(path, raw, "an object")
    return raw


def _text(raw: Mapping[str, Any], key: str, path: str, *, one_of: tuple[str, ...] = ()) -> str:
    value = raw.get(key)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise wrong_setting(f"{path}.{key}", value, "a string")
    if one_of and value not in one_of:
        raise wrong_setting(f"{path}.{key}", value, "one of " + ", ".join(v or '""' for v in one_of))
    return value


def _whole(raw: Mapping[str, Any], key: str, path: str, default: int, low: int, high: int) -> int:
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong_setting(f"{path}.{key}", value, f"a whole number from {low} to {high}")
    return value


def parse_engine(raw_value: object, path: str = "engine") -> EngineSpec:
    raw = _object(raw_value, path)
    cache = _object(raw.get("promptCache"), f"{path}.promptCache")
    draft = _object(raw.get("draft"), f"{path}.draft")
    try:
        cache_bytes = parse_bytes(cache.get("size") or 256 << 20)
    except (ValueError, TypeError) as error:
        raise Failure(INVALID_ENGINE_SETTINGS, f"{path}.promptCache.size: {error}") from None
    layers = raw.get("gpuLayers", "All")
    if layers in ("All", None, "all"):
        gpu_layers = -1
    elif isinstance(layers, (int, str)) and not isinstance(layers, bool) and str(layers).isdigit():
        gpu_layers = int(layers)
    else:
        raise wrong_setting(f"{path}.gpuLayers", layers, "All or a number of layers")
    adapters = []
    for index, item in enumerate(raw.get("adapters") or []):
        where = f"{path}.adapters[{index}]"
        entry = _object(item, where)
        name, source = _text(entry, "name", where), _text(entry, "source", where)
        if not name or not source:
            raise wrong_setting(where, entry, "an object with name and source")
        try:
            scale = float(entry.get("scale", 1.0))
        except (TypeError, ValueError):
            raise wrong_setting(f"{where}.scale", entry.get("scale"), 'a number such as "1.0"') from None
        if not math.isfinite(scale):
            raise wrong_setting(f"{where}.scale", entry.get("scale"), 'a number such as "1.0"')
        adapters.append(Adapter(name, source, scale))
    if draft.get("ngram") and draft.get("source"):
        raise wrong_setting(f"{path}.draft", draft, "an object with source or with ngram, not with both")
    if len({a.name for a in adapters}) < len(adapters):
        raise wrong_setting(f"{path}.adapters", [a.name for a in adapters], "a list in which each name comes once")
    presets = _presets(raw.get("presets") or [], [a.name for a in adapters], f"{path}.presets")
    return EngineSpec(
        context_length=_whole(raw, "contextLength", path, 0, 0, 1 << 24),
        slots=_whole(raw, "slots", path, 4, 1, 256),
        kv_tokens=_whole(raw, "kvTokens", path, 0, 0, 1 << 28),
        threads=_whole(raw, "threads", path, 0, 0, 1024),
        micro_batch=_whole(raw, "microBatch", path, 512, 1, 16384),
        prompt_cache_bytes=cache_bytes,
        keep_on_sleep=bool(cache.get("keepOnSleep", True)),
        draft_source=_text(draft, "source", f"{path}.draft"),
        draft_ngram=bool(draft.get("ngram", False)),
        reasoning=_text(raw, "reasoning", path, one_of=("", "Auto", "None")) or "Auto",
        sampling=sampling_defaults.of_spec(_object(raw.get("sampling"), f"{path}.sampling"), f"{path}.sampling"),
        kv_cache=_text(raw, "kvCache", path, one_of=("", *KV_TYPES)) or "F16",
        flash_attention=_text(raw, "flashAttention", path, one_of=("", "Auto", "On", "Off", "Enabled", "Disabled")) or "Auto",
        gpu_layers=gpu_layers,
        pooling=_text(raw, "pooling", path, one_of=POOLINGS),
        adapters=tuple(adapters),
        presets=presets,
        chat_template=_text(raw, "chatTemplate", path),
    )


def _presets(raw: Any, adapters: list[str], path: str) -> tuple[Preset, ...]:
    if not isinstance(raw, list):
        raise wrong_setting(path, raw, "a list")
    found: dict[str, Preset] = {}
    for index, item in enumerate(raw):
        where = f"{path}[{index}]"
        entry = _object(item, where)
        name = _text(entry, "name", where)
        if not name or name in found or name in adapters:
            raise wrong_setting(f"{where}.name", name, "a name that no other preset and no adapter has")
        sampling = sampling_defaults.of_spec(_object(entry.get("sampling"), f"{where}.sampling"), f"{where}.sampling")
        effort = _text(entry, "reasoningEffort", where, one_of=EFFORTS).lower()
        adapter = _text(entry, "adapter", where, one_of=("", *adapters))
        found[name] = Preset(name, adapter, sampling, effort, _text(entry, "systemPrompt", where))
    return tuple(found.values())


def parse_spec(text: str) -> ServerSpec:
    """The specification of CORRAL_SPEC; Failure names the field that is wrong."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise Failure(INVALID_ENGINE_SETTINGS, f"CORRAL_SPEC is not JSON: {error}") from None
    raw = _object(document, "CORRAL_SPEC")
    model = _object(raw.get("model"), "model")
    source = _text(model, "source", "model")
    if not source:
        raise Failure(INVALID_ENGINE_SETTINGS, "model.source is missing; it names the GGUF file, for example hf://ORG/REPO/FILE.gguf")
    sha256 = _text(model, "sha256", "model").lower()
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise wrong_setting("model.sha256", sha256, "64 hexadecimal digits")
    return ServerSpec(
        source=source,
        namespace=_text(raw, "namespace", "CORRAL_SPEC"),
        name=_text(raw, "name", "CORRAL_SPEC"),
        served_name=_text(raw, "servedName", "CORRAL_SPEC"),
        sha256=sha256,
        projector=_text(model, "projector", "model"),
        cache_key=_text(raw, "cacheKey", "CORRAL_SPEC"),
        engine=parse_engine(raw.get("engine")),
    )
