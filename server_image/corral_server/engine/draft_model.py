"""The second, smaller model that guesses: what it is loaded with, and whether it can guess for the first one at all.

Shared by the estimate and the engine, so that one promises what the other needs. A draft that cannot be taken at its word is refused:
llama.cpp would go on with other words under the same numbers.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from corral_server.engine.library import LIB, L, Log
from corral_server.engine.model import has_state, load_model, make_context, metadata
from corral_server.engine.plan import EnginePlan, ModelFacts
from corral_server.reasons import INVALID_ENGINE_SETTINGS, Failure

FIELD = "engine.draft.source"
_SIZES_APART = 128
_KINDS = ("none", "SPM", "BPE", "WPM", "UGM", "RWKV", "PLaMo-2")
_FIRST_COMPARED = 5
"""The first tokens are marks that vocabularies of one family name differently."""


@dataclass(frozen=True)
class DraftModel:
    model: Any
    context: Any
    plan: EnginePlan
    vocabulary: int


def forgets(model: Any) -> bool:
    """Whether the model's memory loses what came before: nothing that it evaluated can then be taken back."""
    return bool(L.llama_model_n_swa(model) > 0 or has_state(model))


def open_draft(
    path: str, main: Any, plan: EnginePlan, log: Log, *, gpu_layers: int = 0, split: list[float] | None = None, threads: int = 1,
    no_alloc: bool = False, progress: Callable[[float], None] | None = None,
) -> DraftModel:  # fmt: skip
    """The draft model beside the loaded `main`; Failure when it cannot guess for it."""
    if plan.embeds:
        raise Failure(INVALID_ENGINE_SETTINGS, f"{FIELD} is set, but this model generates nothing that could be guessed; remove it")
    if forgets(main):
        raise Failure(
            INVALID_ENGINE_SETTINGS,
            f"{FIELD} is set, but this model has sliding windows or a recurrent state, which cannot take a wrong guess back; remove it",
        )
    try:
        model = load_model(path, log, gpu_layers=gpu_layers, split=split, no_alloc=no_alloc, progress=progress)
    except Failure as failure:
        raise Failure(failure.reason, f"{FIELD}: {failure.message}") from None
    facts = ModelFacts.of(metadata(model))
    if has_state(model) or not facts.causal:
        raise Failure(
            INVALID_ENGINE_SETTINGS,
            f"{FIELD} names a model of architecture {facts.architecture}, which cannot take its own guesses back; name one that keeps its whole past",
        )
    if difference := _difference(L.llama_model_get_vocab(main), L.llama_model_get_vocab(model)):
        raise Failure(INVALID_ENGINE_SETTINGS, f"{FIELD} names a model of another vocabulary: {difference}; name one of the model's own family")
    own = draft_plan(plan, facts)
    try:
        context = make_context(model, own, log, threads=threads, whole_windows=True)
    except Failure as failure:
        raise Failure(failure.reason, f"{FIELD}: {failure.message}") from None
    return DraftModel(model, context, own, L.llama_vocab_n_tokens(L.llama_model_get_vocab(model)))


def draft_plan(plan: EnginePlan, facts: ModelFacts) -> EnginePlan:
    """As many cells as the model itself has, so that what is answered there can be guessed here; one row of output for each slot."""
    size = min(max(plan.micro_batch, plan.slots), plan.cells)
    return replace(
        plan, context_length=min(plan.context_length, facts.trained_context or plan.context_length),
        batch=size, micro_batch=size, outputs=plan.slots, drafted=0,
    )  # fmt: skip


def _difference(main: Any, draft: Any) -> str:
    """Where two vocabularies part, in words; empty when a token means the same to both."""
    kinds = L.llama_vocab_type(main), L.llama_vocab_type(draft)
    if kinds[0] != kinds[1]:
        return f"it is of the type {_kind(kinds[1])}, the model's is {_kind(kinds[0])}"
    for name in ("bos", "eos"):
        adds = [bool(getattr(L, f"llama_vocab_get_add_{name}")(v)) for v in (main, draft)]
        tokens = [getattr(L, f"llama_vocab_{name}")(v) for v in (main, draft)]
        if adds[0] != adds[1] or (adds[0] and tokens[0] != tokens[1]):
            return f"its {name} is {_mark(adds[1], tokens[1])}, the model's is {_mark(adds[0], tokens[0])}"
    sizes = L.llama_vocab_n_tokens(main), L.llama_vocab_n_tokens(draft)
    if abs(sizes[0] - sizes[1]) > _SIZES_APART:
        return f"it has {sizes[1]} tokens, the model has {sizes[0]}"
    text = LIB["llama_vocab_get_text"]
    text.restype, text.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int32]
    for token in range(_FIRST_COMPARED, min(sizes)):
        ours, theirs = text(main, token), text(draft, token)
        if ours != theirs:
            return f"its token {token} is {_shown(theirs)}, the model's is {_shown(ours)}"
    return ""


def _kind(number: int) -> str:
    return _KINDS[number] if 0 <= number < len(_KINDS) else str(number)


def _mark(added: bool, token: int) -> str:
    return f"token {token}, {'added' if added else 'not added'} to a prompt"


def _shown(text: bytes | None) -> str:
    return repr((text or b"").decode("utf-8", "replace")[:40])
