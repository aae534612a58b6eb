"""What a request is told that no model answers: each way with its status, its code and a message that names the cause. Pure."""

from __future__ import annotations

from corral.domain import reasons
from corral.gateway.effects import Rejection
from corral.gateway.ports import ModelView

RETRY_AFTER = 10
"""Seconds after which a request that could not be held is worth another try."""

NEVER_FITS = frozenset({reasons.DOES_NOT_FIT, reasons.PINNED_DOES_NOT_FIT, reasons.NO_DEVICES})
STILL_SERVES = frozenset({reasons.NAME_TAKEN, reasons.OVERLAPPING})
"""Reasons that stall an object and still leave its model servable (under its full name)."""
LOAD_FAILURES = frozenset(
    {
        reasons.ESTIMATE_FAILED,
        reasons.SOURCE_UNREACHABLE,
        reasons.SOURCE_NOT_FOUND,
        reasons.SOURCE_UNAUTHORIZED,
        reasons.SOURCE_REFUSED,
        reasons.UNSUPPORTED_SOURCE,
        reasons.NOT_A_GGUF,
        reasons.UNSUPPORTED_MODEL,
        reasons.CHECKSUM_MISMATCH,
        reasons.NO_SPACE,
        reasons.OUT_OF_MEMORY,
        reasons.LOAD_FAILED,
        reasons.LOAD_TIMEOUT,
        reasons.ENGINE_CRASHED,
        reasons.INVALID_ENGINE_SETTINGS,
        reasons.SECRET_NOT_FOUND,
    }
)


def blocked(model: ModelView) -> Rejection | None:
    """The refusal of a model that will not heal by itself; None for every other."""
    if not model.stalled or model.stalled_reason in STILL_SERVES:
        return None
    return failed(model, model.stalled_reason, model.stalled_message)


def failing(model: ModelView) -> Rejection | None:
    """The refusal of a model whose last load failed, though another may succeed."""
    if model.ready is not False or model.reason not in LOAD_FAILURES:
        return None
    return failed(model, model.reason, model.message)


def failed(model: ModelView, reason: str, message: str) -> Rejection:
    if reason in NEVER_FITS:
        return Rejection(503, "does_not_fit", f"{model.key} cannot be placed: {message or reason}", reason)
    return Rejection(503, "load_failed", f"{model.key} could not be loaded: {reason}: {message}", reason, RETRY_AFTER)


def not_found(name: str) -> Rejection:
    return Rejection(404, "model_not_found", f"the model {name!r} does not exist; GET /v1/models lists those that do")


def not_loaded(model: ModelView) -> Rejection:
    return Rejection(400, "model_not_loaded", f"{model.key} is not loaded and the request asks not to load it (autoload=false)")


def may_not_wake(model: ModelView) -> Rejection:
    return Rejection(403, "model_not_loaded", f"{model.key} is not loaded and this key may not wake models (scope wake)")


def full(model: ModelView, what: str) -> Rejection:
    return Rejection(429, "hold_full", f"{what} while {model.key} is {model.state}; try again later", model.state, RETRY_AFTER)


def timed_out(model: ModelView, waited: float) -> Rejection:
    failure = failing(model)
    if failure is not None:
        return failure
    because = next((entry.message for entry in model.conditions if entry.type == "Loaded" and entry.message), "")
    text = f"{model.key} did not become resident within {waited:.0f}s; it is {model.state}" + (f": {because}" if because else "")
    return Rejection(503, "hold_timeout", text, model.state, RETRY_AFTER)


def stopping() -> Rejection:
    return Rejection(503, "gateway_stopping", "this gateway is stopping; another answers at the same address", "", 1)
