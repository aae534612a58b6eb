"""Every sample, judged by the models; `e2e/test_api.py` asks a real API server the same questions."""

import pytest
from tests.support.samples import Sample, samples
from tests.support.structural import defaulted, fields

from corral.api import InvalidObjectError
from corral.api.base import Resource
from corral.api.schema import DEFINITIONS, schema_of

KINDS: dict[str, type[Resource]] = {definition.model.KIND: definition.model for definition in DEFINITIONS}


@pytest.mark.parametrize("sample", samples("valid"), ids=lambda sample: sample.name)
def test_valid_samples_mean_the_same_before_and_after_the_api_server(sample: Sample) -> None:
    model = KINDS[sample.obj["kind"]]
    stored = defaulted(schema_of(model), sample.obj)
    assert model.parse(sample.obj, strict=True) == model.parse(stored, strict=True)


@pytest.mark.parametrize("sample", samples("valid"), ids=lambda sample: sample.name)
def test_what_is_written_is_read_back_the_same(sample: Sample) -> None:
    model = KINDS[sample.obj["kind"]]
    once = model.parse(sample.obj)
    assert model.parse(once.dump(), strict=bool(once.metadata.name)) == once


@pytest.mark.parametrize("sample", samples("invalid"), ids=lambda sample: sample.name)
def test_invalid_samples_are_refused_in_the_api_servers_words(sample: Sample) -> None:
    with pytest.raises(InvalidObjectError) as refused:
        KINDS[sample.obj["kind"]].parse(sample.obj, strict=True)
    assert sorted(str(cause) for cause in refused.value.causes) == sorted(sample.local)
    assert sample.messages


def test_every_rule_has_a_sample_that_breaks_it() -> None:
    told = {message for sample in samples("invalid") for message in sample.messages}
    for model in KINDS.values():
        for path, node in fields(schema_of(model)):
            for rule in node.get("x-kubernetes-validations", []):
                assert any(message.endswith(rule["message"]) for message in told), f"{model.KIND} {path}: {rule['message']}"


def test_an_unknown_field_is_ignored_unless_asked() -> None:
    sample = next(found for found in samples("invalid") if found.name == "unknown-field")
    assert KINDS["ModelDeployment"].parse(sample.obj).metadata.name == "unknown-field"


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong = {"metadata": {"name": "x"}, "spec": {"model": {}, "engine": {"slots": 0}, "scaling": {"sleepAfter": "soon"}}}
    with pytest.raises(InvalidObjectError) as refused:
        KINDS["ModelDeployment"].parse(wrong)
    assert {cause.field for cause in refused.value.causes} == {"spec.model.source", "spec.engine.slots", "spec.scaling.sleepAfter"}
    assert str(refused.value).startswith('ModelDeployment "x" is invalid: spec.model.source: Required value; ')
