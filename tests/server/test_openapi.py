"""The inference port against its own OpenAPI document, by generated requests: no 5xx, only statuses, types and shapes that the document names,
and nothing accepted that it forbids. `CORRAL_OPENAPI_EXAMPLES` requests a route.
"""

import os

import pytest
from tests.server.harness import Server

pytestmark = [pytest.mark.model, pytest.mark.timeout(3600)]

EXAMPLES = int(os.environ.get("CORRAL_OPENAPI_EXAMPLES", "2"))
SEED = int(os.environ.get("CORRAL_FUZZ_SEED", "1"))


def test_every_post_route_describes_its_body_and_errors(alpaca: Server):
    paths = alpaca.http.get("/openapi.json").json()["paths"]
    posts = {path: methods["post"] for path, methods in paths.items() if "post" in methods}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/rerank", "/completion"} <= posts.keys()
    # Without a body: what is asked of a slot or of a stored response stands in the address.
    posts = {path: operation for path, operation in posts.items() if "{" not in path}
    for path, operation in posts.items():
        (schema,) = [form["schema"] for form in operation["requestBody"]["content"].values()]
        assert schema.get("properties") or schema.get("items"), path
        assert {"200", "400", "401", "429", "500", "503"} <= operation["responses"].keys(), path


def test_what_the_document_says_holds(alpaca: Server):
    # Imported here: it takes seconds, and its plugin for pytest is left out.
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    names = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance", "negative_data_rejection"]
    checks = CHECKS.get_by_names(names)
    schema = schemathesis.openapi.from_dict(alpaca.http.get("/openapi.json").json())
    headers = alpaca.bearer("infer", lifetime=3600)
    engine, loads = alpaca.engine_pid(), alpaca.status()["loads"]
    seen: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        requests = [operation.as_strategy(generation_mode=mode) for mode in _modes(operation)]

        @seed(SEED)
        @settings(max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=st.one_of(requests))
        def ask(case: schemathesis.Case):
            answer = case.call(base_url=alpaca.inference_url, headers=headers, timeout=120)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            case.validate_response(answer, checks=checks, headers=headers)

        ask()
    print(f"answers by status: {seen}")
    assert seen[200]
    assert seen[400]
    assert (alpaca.engine_pid(), alpaca.status()["loads"]) == (engine, loads)


def _modes(operation: object) -> list:
    from schemathesis import GenerationMode

    return [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if operation.body else [GenerationMode.POSITIVE]
