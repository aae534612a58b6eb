"""What a request that does not say gets: `spec.engine.sampling` as the operator writes it, over the file's own values."""

from pathlib import Path

import pytest
from tests.server.harness import Server
from tests.support.models import smollm2

from corral.api import ModelDeployment, server_spec
from corral_server.reasons import Failure
from corral_server.sampling_defaults import of_file
from corral_server.spec import parse_engine


def sampling(**values: object) -> dict:
    return dict(parse_engine({"sampling": values}).sampling)


def test_decimals_come_as_strings():
    assert sampling(temperature="0.25", topP="0.9", topK=20, repeatPenalty="1.1", maxTokens=7, seed=5) == {
        "temperature": 0.25, "top_p": 0.9, "top_k": 20, "repeat_penalty": 1.1, "max_tokens": 7, "seed": 5,
    }  # fmt: skip


@pytest.mark.parametrize("values", [{"temperature": "-1"}, {"topP": "1.5"}, {"topP": "much"}, {"topK": -3}, {"maxTokens": 0}, {"seed": True}])
def test_what_no_request_could_have_is_refused_by_name(values: dict):
    with pytest.raises(Failure) as refusal:
        sampling(**values)
    assert f"sampling.{next(iter(values))} is" in refusal.value.message


def test_a_file_recommends_and_is_not_believed_blindly():
    said = {"temp": "0.6", "top_k": "20", "top_p": "0.95", "penalty_repeat": "nan", "min_p": "7", "mirostat": "2",
            "sequence": "penalties;Top-K;temp;nonsense;top_k"}  # fmt: skip
    assert of_file({f"general.sampling.{key}": value for key, value in said.items()}) == {
        "temperature": 0.6, "top_k": 20, "top_p": 0.95, "mirostat": 2, "samplers": ["penalties", "top_k", "temperature"],
    }  # fmt: skip


@pytest.mark.model
def test_a_model_deployments_settings_hold_for_requests_that_say_nothing(tmp_path: Path):
    deployed = ModelDeployment.parse(
        {
            "metadata": {"name": "m", "namespace": "n"},
            "spec": {
                "model": {"source": smollm2().as_uri()},
                "engine": {"contextLength": 256, "sampling": {"temperature": "0", "topP": "0.5", "maxTokens": 5}},
            },
        }
    )
    with Server(smollm2().as_uri(), tmp_path, engine=server_spec(deployed)["engine"]) as server:
        server.load()
        ask = {"messages": [{"role": "user", "content": "Count to a hundred"}]}
        told = [server.http.post("/v1/chat/completions", json=ask).raise_for_status().json() for _ in range(2)]
        assert told[0]["choices"][0]["message"] == told[1]["choices"][0]["message"], "temperature 0"
        assert told[0]["usage"]["completion_tokens"] == 5
        assert told[0]["choices"][0]["finish_reason"] == "length"
        own = server.http.post("/v1/chat/completions", json={**ask, "max_tokens": 7}).raise_for_status().json()
        assert own["usage"]["completion_tokens"] == 7
        plain = server.http.post("/v1/completions", json={"prompt": "One, two,"}).raise_for_status().json()
        assert plain["usage"]["completion_tokens"] == 5
        params = server.http.get("/props").json()["default_generation_settings"]["params"]
        assert (params["temperature"], params["top_p"], params["n_predict"]) == (0.0, 0.5, 5)
