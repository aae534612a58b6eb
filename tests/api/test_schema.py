"""The generated schemas keep the API server's demands and the project's own."""

import re

import pytest
import yaml
from tests.support.samples import ROOT
from tests.support.structural import fields

from corral.api.base import Resource
from corral.api.generate import generated, main
from corral.api.modeldeployment import ModelDeployment
from corral.api.modelpool import ModelPool
from corral.api.schema import DEFINITIONS, crd, schema_of

MODELS = [definition.model for definition in DEFINITIONS]


def test_the_checked_in_files_are_what_the_models_say() -> None:
    for path, text in generated().items():
        assert (ROOT / path).read_text() == text, f"{path} is out of date: run `make crds`"


def test_the_check_tells_a_stale_file_and_changes_nothing(tmp_path, capsys) -> None:
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    stale = tmp_path / "crds" / "corral.dev_modelpools.yaml"
    stale.write_text("other\n")
    capsys.readouterr()
    assert main([str(tmp_path), "--check"]) == 1
    assert "crds/corral.dev_modelpools.yaml" in capsys.readouterr().err
    assert stale.read_text() == "other\n"


@pytest.mark.parametrize("model", MODELS)
def test_every_field_is_typed_described_and_bounded(model: type[Resource]) -> None:
    for path, node in fields(schema_of(model)):
        if path == "metadata":
            continue
        where = f"{model.KIND} {path}"
        either = node.get("x-kubernetes-int-or-string")
        assert either or node["type"] in {"object", "array", "string", "integer", "boolean"}, f"{where}: no floats"
        if not path.endswith(("[]", "{}")):
            assert node.get("description"), where
        if node.get("type") == "string":
            assert "enum" in node or "maxLength" in node or path in {"apiVersion", "kind"}, where
        if node.get("type") == "array":
            assert {"maxItems", "x-kubernetes-list-type"} <= node.keys(), where
        if "additionalProperties" in node:
            assert "maxProperties" in node, where
        if either:
            assert "pattern" in node, where


@pytest.mark.parametrize("model", MODELS)
def test_enums_are_words(model: type[Resource]) -> None:
    for path, node in fields(schema_of(model)):
        for word in node.get("enum", []):
            assert word == "" or re.fullmatch(r"[A-Z][A-Za-z0-9_]*", word), f"{path}: {word}"


@pytest.mark.parametrize("model", MODELS)
def test_parents_spell_out_the_defaults_of_their_fields(model: type[Resource]) -> None:
    for path, node in fields(schema_of(model)):
        if "properties" in node and "default" in node:
            own = {name: child["default"] for name, child in node["properties"].items() if "default" in child}
            assert node["default"] == own, path


def test_what_a_pool_can_set_has_no_default_on_the_model() -> None:
    scaling = schema_of(ModelDeployment)["properties"]["spec"]["properties"]["scaling"]
    idle = schema_of(ModelPool)["properties"]["spec"]["properties"]["idle"]
    for name in idle["properties"]:
        assert name in scaling["properties"]
        assert "default" not in scaling["properties"][name]
        assert name not in scaling["default"]


def test_a_status_has_no_defaults() -> None:
    for model in MODELS:
        for path, node in fields(schema_of(model)["properties"].get("status", {})):
            assert "default" not in node, f"{model.KIND} status.{path}"


def test_conditions_are_a_map_by_type() -> None:
    for model in (ModelDeployment, ModelPool):
        conditions = schema_of(model)["properties"]["status"]["properties"]["conditions"]
        assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
        assert set(conditions["items"]["required"]) == {"type", "status", "lastTransitionTime", "reason"}


def test_the_crds_stay_small_enough_for_client_side_apply() -> None:
    for definition in DEFINITIONS:
        assert len(yaml.safe_dump(crd(definition))) < 200_000


def test_the_reference_names_every_field_of_every_spec() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    for model in MODELS:
        for path, _ in fields(schema_of(model)["properties"]["spec"]):
            if path and not path.endswith(("[]", "{}")):
                assert f"| `{path}` |" in page, f"{model.KIND} {path}"
