"""`/v1/models`: the one model of this server, as OpenAI's clients and llama.cpp's know it."""

from typing import Any

from starlette.requests import Request

from corral_server.openai.service import Service


def model_object(service: Service, name: str, created: int) -> dict[str, Any]:
    model = service.model
    meta = {
        "vocab_type": model.get("vocabularyType", 0), "n_vocab": model["vocabulary"], "n_ctx": model["contextLength"],
        "n_ctx_train": model["trainedContext"], "n_embd": model["embeddingLength"], "n_params": model["parameters"], "size": model["size"],
        "ftype": model.get("format", ""),
    } if model else None  # fmt: skip
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "corral",
        "aliases": [name],
        "tags": [],
        "meta": meta,
        **_modalities(service),
    }


def model_list(service: Service, request: Request, created: int) -> dict[str, Any]:
    """The list in both shapes: `data` as OpenAI has it, `models` as Ollama's clients read it from llama.cpp."""
    name = service.served_name(request)
    details = {"parent_model": "", "format": "gguf", "family": "", "families": [""], "parameter_size": "", "quantization_level": ""}
    shown = {
        "name": name, "model": name, "modified_at": "", "size": "", "digest": "", "type": "model", "description": "", "tags": [""],
        "capabilities": capabilities(service), "parameters": "", "details": details,
    }  # fmt: skip
    return {"object": "list", "data": [model_object(service, name, created)], "models": [shown]}


def _modalities(service: Service) -> dict[str, Any]:
    able = service.able
    if not able:
        return {}
    found = ["text", *(name for name, side in (("image", "vision"), ("audio", "audio")) if able.get(side))]
    return {"architecture": {"input_modalities": found, "output_modalities": ["text"]}}


def capabilities(service: Service) -> list[str]:
    if not service.pooling:
        return ["completion", "multimodal"] if service.able else ["completion"]
    return ["embedding", "rerank"] if service.pooling == "Rank" else ["embedding"]
