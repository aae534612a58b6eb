"""The values, their schema and their words; needs no helm."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from tests.support.chart import CHART

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def keys(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield (*path, name)
            yield from keys(value, (*path, name))


def schema_keys(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, child in schema.get("properties", {}).items():
        yield (*path, name)
        yield from schema_keys(child, (*path, name))


def objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if "properties" in schema:
        yield path, schema
        for name, child in schema["properties"].items():
            yield from objects(child, f"{path}.{name}")


def test_the_values_keep_their_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)


def test_every_value_of_the_schema_has_a_default_and_the_other_way_round() -> None:
    free = {("operator", "resources"), ("gateway", "resources")}
    told = {path for path in keys(VALUES) if path[:2] not in free}
    known = {path for path in schema_keys(SCHEMA) if path[:2] not in free and path != ("global",)}
    assert told == known


def test_no_name_that_does_not_exist_is_taken() -> None:
    for path, schema in objects(SCHEMA):
        assert schema["additionalProperties"] is False, path


@pytest.mark.parametrize(
    "wrong",
    [
        {"gateway": {"replica": 3}},
        {"gateway": {"replicas": 0}},
        {"image": {"corral": {"digest": "latest"}}},
        {"image": {"server": {"pullPolicy": "Sometimes"}}},
        {"keys": {"namespace": "Keys"}},
        {"pool": {"hook": "Maybe"}},
        {"httpRoute": {"timeout": "one hour"}},
        {"logLevel": "verbose"},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)
