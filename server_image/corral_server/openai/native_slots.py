"""`/slots`: what the engine's sequences do, and making one forget."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral_server.lifecycle import State
from corral_server.openai.answers import json_response
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.native_settings import settings
from corral_server.openai.sampling import sampling_of
from corral_server.openai.service import Service


async def slot_list(service: Service, request: Request) -> Response:
    """Neither wakes the model nor counts as use; empty while it is not loaded."""
    if service.life.state not in (State.LOADED, State.DRAINING):
        return json_response([])
    stream = service.engine().submit("slots", {})
    try:
        found = (await stream.last())["slots"]
    finally:
        stream.close()
    if request.query_params.get("fail_on_no_slot") and all(s["processing"] for s in found):
        raise ApiError(503, "unavailable", "no slot available: all of them are answering", headers={"retry-after": "1"})
    context, drafts = service.model.get("contextLength", 0), service.model.get("drafts", "")
    defaults = settings(sampling_of({}, service.defaults()), limit=service.defaults().get("max_tokens"), drafts=drafts)
    return json_response([_shape(s, context, defaults, drafts=bool(drafts)) for s in found])


def _shape(slot: dict[str, Any], context: int, defaults: dict[str, Any], *, drafts: bool) -> dict[str, Any]:
    shape: dict[str, Any] = {"id": slot["id"], "n_ctx": context, "speculative": drafts, "is_processing": slot["processing"]}
    # What a sequence that has done nothing yet would do is not told.
    if slot["tokens"] or slot["processing"]:
        shape |= {
            "id_task": slot["task"], "n_prompt_tokens": slot["tokens"], "n_prompt_tokens_processed": slot["tokens"],
            "n_prompt_tokens_cache": slot["tokens"], "n_past": slot["tokens"], "params": defaults,
            "next_token": [
                {"has_next_token": slot["processing"], "has_new_line": False, "n_remain": slot["left"], "n_decoded": slot["generated"]}
            ],
        }  # fmt: skip
    return shape


async def slot_action(service: Service, request: Request, slot: str) -> Response:
    """`POST /slots/N?action=erase`. Saving and restoring is done by the server itself, so there is nothing to name a file for."""
    action = request.query_params.get("action", "")
    count = int(service.model.get("slots", 0))
    if not (slot.isascii() and slot.isdigit()) or int(slot) >= count:
        raise invalid("id_slot", f"the slot is {slot[:20]!r}; this server has slots 0 to {count - 1}")
    if action in ("save", "restore"):
        raise ApiError(501, "not_supported", "this server saves and restores its sequences by itself; slots cannot be saved under a name", "action")
    if action != "erase":
        raise invalid("action", f"action is {action[:20]!r}; it has to be erase")
    found = await service.ask(request, "erase", {"slot": int(slot)})
    if found["busy"]:
        raise ApiError(503, "unavailable", f"slot {slot} is answering; erase it when it is idle", headers={"retry-after": "1"})
    return json_response({"id_slot": int(slot), "n_erased": found["erased"]})
