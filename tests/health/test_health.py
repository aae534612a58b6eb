"""What GitOps tools make of a stored object in each state: kstatus (Flux, helm) and Argo CD by the `health.lua` that the chart ships."""

from pathlib import Path
from typing import Any

import lupa
import pytest
import yaml
from tests.support.kstatus import kstatus
from tests.support.samples import ROOT

from corral.api import ModelDeployment, ModelPool
from corral.domain import reasons

OBJECTS = sorted((Path(__file__).parent / "objects").glob("*.yaml"))
HEALTH = (ROOT / "charts" / "corral" / "files" / "health.lua").read_text()
WORDS = {value for name, value in vars(reasons).items() if name.isupper()}


def argo(obj: dict[str, Any]) -> str:
    """`status: message`, from the script run as Argo CD runs it: with `obj` as a global."""
    lua = lupa.LuaRuntime(register_eval=False)
    lua.globals().obj = lua.table_from(obj, recursive=True)
    told = lua.execute(HEALTH)
    return f"{told.status}: {told.message}"


def expected(file: Path, word: str) -> str:
    start = f"# {word}: "
    return next(line.removeprefix(start) for line in file.read_text().splitlines() if line.startswith(start))


@pytest.mark.parametrize("file", OBJECTS, ids=lambda file: file.stem)
def test_kstatus(file: Path) -> None:
    assert kstatus(yaml.safe_load(file.read_text())) == expected(file, "kstatus")


@pytest.mark.parametrize("file", OBJECTS, ids=lambda file: file.stem)
def test_argo_cd(file: Path) -> None:
    assert argo(yaml.safe_load(file.read_text())) == expected(file, "argo")


@pytest.mark.parametrize("file", OBJECTS, ids=lambda file: file.stem)
def test_the_objects_are_such_as_the_operator_writes(file: Path) -> None:
    obj = yaml.safe_load(file.read_text())
    parsed = (ModelDeployment if obj["kind"] == "ModelDeployment" else ModelPool).parse(obj)
    on = [found.type for found in parsed.status.conditions if found.status == "True"]
    assert not {"Reconciling", "Stalled"} <= set(on)
    assert {found.reason for found in parsed.status.conditions} <= WORDS


def test_the_script_needs_no_field_that_may_be_absent() -> None:
    assert argo({"metadata": {}, "status": {"conditions": []}}).startswith("Progressing: ")
    bare = {
        "metadata": {"generation": 1},
        "status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]},
    }
    assert argo(bare) == "Healthy: Ready"
