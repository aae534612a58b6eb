"""What the engine will ask llama.cpp for: context, cells, batch sizes, threads. Pure; the estimate and the engine share it,
so that what was promised is what gets allocated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corral_server.engine.drafting import MOST
from corral_server.reasons import INVALID_ENGINE_SETTINGS, Failure
from corral_server.spec import EngineSpec

DEFAULT_CONTEXT = 8192
POOLING_TYPES = {"None": 0, "Mean": 1, "CLS": 2, "Last": 3, "Rank": 4}
_POOLING_NAMES = {1: "Mean", 2: "CLS", 3: "Last", 4: "Rank"}
GGML_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
FLASH_ATTENTION = {"Auto": -1, "Off": 0, "Disabled": 0, "On": 1, "Enabled": 1}


@dataclass(frozen=True)
class ModelFacts:
    """What the file's header says, as far as the plan needs it."""

    architecture: str
    trained_context: int
    causal: bool
    pooling_type: int | None

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "ModelFacts":
        arch = str(meta.get("general.architecture", ""))
        pooling = meta.get(f"{arch}.pooling_type")
        causal = meta.get(f"{arch}.attention.causal", "true")
        return cls(
            architecture=arch,
            trained_context=int(meta.get(f"{arch}.context_length", 0) or 0),
            causal=str(causal).lower() not in {"false", "0"},
            pooling_type=int(pooling) if pooling is not None else None,
        )


@dataclass(frozen=True)
class EnginePlan:
    context_length: int
    cells: int
    slots: int
    batch: int
    micro_batch: int
    outputs: int
    pooling: str
    kv_type: int
    flash_attention: int
    gpu_layers: int
    drafted: int = 0
    """Guessed tokens that a step may evaluate for each slot."""

    @property
    def embeds(self) -> bool:
        return self.pooling != ""


def _padded(value: int) -> int:
    return -(-value // 256) * 256


def make_plan(spec: EngineSpec, facts: ModelFacts) -> EnginePlan:
    trained = facts.trained_context or DEFAULT_CONTEXT
    context = spec.context_length or min(trained, DEFAULT_CONTEXT)
    if spec.pooling:
        pooling = "" if spec.pooling == "None" else spec.pooling
    else:
        pooling = _POOLING_NAMES.get(facts.pooling_type or 0, "")
        if not pooling and not facts.causal:
            pooling = "Mean"
    if not pooling and not facts.causal:
        raise Failure(
            INVALID_ENGINE_SETTINGS,
            "engine.pooling is None, but this model reads its whole input at once and generates nothing; leave it away, or name a pooling",
        )
    if pooling:
        # A pooled input has to be evaluated in one piece.
        context = min(context, trained)
        size = max(_padded(context), 256)
        return EnginePlan(
            context_length=context, cells=size, slots=spec.slots, batch=size, micro_batch=size, outputs=0, pooling=pooling,
            kv_type=GGML_TYPES[spec.kv_cache], flash_attention=FLASH_ATTENTION[spec.flash_attention], gpu_layers=spec.gpu_layers,
        )  # fmt: skip
    cells = spec.kv_tokens or context * min(spec.slots, 2)
    if cells < context:
        raise Failure(
            INVALID_ENGINE_SETTINGS,
            f"engine.kvTokens is {cells}, less than the context length {context}; no request of full length could ever be admitted",
        )
    cells = _padded(cells)
    micro = min(spec.micro_batch, cells)
    drafted = MOST if spec.draft_ngram or spec.draft_source else 0
    return EnginePlan(
        context_length=context, cells=cells, slots=spec.slots, batch=min(max(2048, micro), cells), micro_batch=micro,
        outputs=spec.slots * (1 + drafted),
        pooling="", kv_type=GGML_TYPES[spec.kv_cache], flash_attention=FLASH_ATTENTION[spec.flash_attention], gpu_layers=spec.gpu_layers,
        drafted=drafted,
    )  # fmt: skip


def thread_count(asked: int, cpu_limit: float, physical_cores: int) -> int:
    """Threads for decoding at most: what was asked, else the CPU limit, else all cores. Where others want them too, `crowding` takes fewer."""
    if asked:
        return asked
    if cpu_limit > 0:
        return max(1, int(cpu_limit))
    return max(1, physical_cores)
