"""A conformance suite that others wrote (llm-comply), run as its users run it, against a model whose sentence ends.

Tools are left to tests of our own: this model calls none by itself, and the suite sets no limit to its arguments. So are requests without a model,
which the gateway refuses, for it could not route them, and images.
"""

import json
import subprocess
import sys

import pytest
from tests.server.harness import Server

pytestmark = pytest.mark.model

ASKED = {
    "open-responses": "basic-response,system-prompt,multi-turn,streaming-response,streaming-usage,assistant-phase,response-output-phase-schema,"
    "compact-response,compact-missing-model",
    "openai-chat": "chat-basic-response,chat-system-prompt,chat-multi-turn,chat-streaming-response,chat-streaming-usage",
    "anthropic": "anth-basic-response,anth-system-prompt,anth-multi-turn,anth-streaming-response,anth-streaming-usage,anth-error-handling",
}


@pytest.mark.parametrize("form", ASKED)
def test_what_a_conformance_suite_expects(alpaca: Server, form: str):
    where = ["--format", form, "--base-url", f"{alpaca.inference_url}/v1", "--api-key", alpaca.keys.sign("infer"), "--model", "small"]
    command = [sys.executable, "-m", "llm_comply.cli", "run", *where, "--json", "--timeout", "200", "-f", ASKED[form]]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    results = {r["id"]: r for r in json.loads(run.stdout)["results"]}
    assert list(results) == ASKED[form].split(",")
    assert {name: r for name, r in results.items() if r["status"] != "passed"} == {}
