"""CORRAL_SPEC: what is understood, what is refused and how; and the context that follows from it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.structural import fields

from corral_server.engine.plan import ModelFacts, make_plan, thread_count
from corral_server.quantities import parse_bytes, parse_seconds, parse_time, rfc3339
from corral_server.reasons import Failure
from corral_server.spec import EngineSpec, parse_engine, parse_spec

LLAMA = ModelFacts("llama", 32768, causal=True, pooling_type=None)


def test_everything_but_the_source_has_a_default():
    spec = parse_spec(json.dumps({"model": {"source": "file:///m.gguf"}}))
    assert (spec.source, spec.engine) == ("file:///m.gguf", EngineSpec())


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"slots": 0}, "engine.slots is 0; it has to be a whole number from 1 to 256"),
        ({"slots": "4"}, 'engine.slots is "4"'),
        ({"contextLength": -1}, "engine.contextLength is -1"),
        ({"kvCache": "F8"}, 'engine.kvCache is "F8"; it has to be one of'),
        ({"pooling": "Max"}, "engine.pooling"),
        ({"gpuLayers": "some"}, 'engine.gpuLayers is "some"; it has to be All or a number'),
        ({"promptCache": {"size": "much"}}, "engine.promptCache.size"),
        ({"adapters": [{"name": "a"}]}, "engine.adapters[0]"),
        ({"adapters": {"name": "a"}}, "engine.adapters"),
        ([], "engine is []; it has to be an object"),
    ],
)
def test_an_error_names_the_field_and_what_would_be_right(engine: object, says: str):
    with pytest.raises(Failure) as caught:
        parse_engine(engine)
    assert says in caught.value.message
    assert caught.value.reason == "InvalidEngineSettings"
    assert not caught.value.retry


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not JSON"), ("{}", "model.source is missing"), ('{"model":{"source":"file:///m","sha256":"12"}}', "model.sha256"), ("[]", "object")],
)
def test_a_broken_specification_is_refused(text: str, says: str):
    with pytest.raises(Failure, match=says):
        parse_spec(text)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"engine": {"draft": {"source": "file:///d", "ngram": True}}}, "engine.draft"),
    ],
)
def test_what_cannot_be_honoured_is_never_ignored(more: dict, field: str):
    with pytest.raises(Failure, match=field) as caught:
        parse_spec(json.dumps({"model": {"source": "file:///m"}, **more}))
    assert caught.value.reason == "InvalidEngineSettings"


def test_the_plan_of_a_chat_model():
    plan = make_plan(EngineSpec(), LLAMA)
    assert (plan.context_length, plan.cells, plan.slots, plan.batch, plan.micro_batch, plan.outputs) == (8192, 16384, 4, 2048, 512, 4)
    assert make_plan(EngineSpec(slots=1), LLAMA).cells == 8192
    assert make_plan(EngineSpec(context_length=1000, slots=2), LLAMA).cells == 2048
    assert make_plan(EngineSpec(), ModelFacts("llama", 2048, causal=True, pooling_type=None)).context_length == 2048


def test_cells_that_hold_no_whole_request_are_refused():
    with pytest.raises(Failure, match="kvTokens is 100"):
        make_plan(EngineSpec(context_length=1000, kv_tokens=100), LLAMA)


def test_an_encoder_embeds_without_being_told_and_in_one_piece():
    plan = make_plan(EngineSpec(), ModelFacts("bert", 512, causal=False, pooling_type=1))
    assert (plan.pooling, plan.batch, plan.micro_batch, plan.embeds) == ("Mean", 512, 512, True)
    assert make_plan(EngineSpec(pooling="CLS"), LLAMA).pooling == "CLS"
    assert make_plan(EngineSpec(pooling="None"), ModelFacts("qwen3", 512, causal=True, pooling_type=3)).pooling == ""
    with pytest.raises(Failure, match="generates nothing"):
        make_plan(EngineSpec(pooling="None"), ModelFacts("bert", 512, causal=False, pooling_type=1))


def test_threads_follow_the_limit_not_the_machine():
    assert thread_count(3, 1.0, 64) == 3
    assert thread_count(0, 2.5, 64) == 2
    assert thread_count(0, 0.2, 64) == 1
    assert thread_count(0, 0.0, 8) == 8
    assert thread_count(0, 0.0, 1) == 1


def test_quantities_durations_and_times():
    assert [parse_bytes(v) for v in ("256Mi", "1G", 7, "1.5Ki")] == [256 << 20, 10**9, 7, 1536]
    assert [parse_seconds(v) for v in ("10s", "1m30s", "250ms", 2)] == [10, 90, 0.25, 2]
    for bad in ("10", "s", "10 s", "1d"):
        with pytest.raises(ValueError, match="duration"):
            parse_seconds(bad)
    with pytest.raises(ValueError, match="quantity"):
        parse_bytes("1 Gi")
    assert parse_time(rfc3339(1700000000.25)) == 1700000000.25
    with pytest.raises(ValueError, match="time zone"):
        parse_time("2026-01-01T00:00:00")


CRD = Path(__file__).resolve().parents[2] / "crds" / "corral.dev_modeldeployments.yaml"


def extremes() -> Iterator[tuple[str, Any]]:
    """Each field of `spec.engine` that has a least, a most or a set of values in the CRD, with each of them."""

    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    for path, node in fields(version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["engine"]):
        for value in [node[k] for k in ("minimum", "maximum") if k in node] + node.get("enum", []):
            yield path, value


@pytest.mark.parametrize(("path", "value"), list(extremes()), ids=str)
def test_the_server_takes_whatever_the_api_server_lets_through(path: str, value: Any):
    *parents, last = path.split(".")
    engine: dict[str, Any] = {last: value}
    for parent in reversed(parents):
        engine = {parent: engine}
    assert parse_engine(engine)


def test_the_api_server_bounds_whole_numbers_and_names_values():
    assert {path for path, _ in extremes()} >= {"contextLength", "slots", "kvTokens", "threads", "microBatch", "pooling", "kvCache", "sampling.topK"}
