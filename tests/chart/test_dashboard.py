"""The dashboard and the alerts ask for metrics that there are, and reach the cluster unchanged."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.chart import CHART, render

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
NAME = re.compile(r"\b(?:corral_[a-z_]+|llamacpp:[a-z_]+)")
DERIVED = re.compile(r"_(total|bucket|sum|count)$")


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def targets() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


@cache
def known() -> set[str]:
    """The names that operator, gateway and server give their metrics, as their sources have them."""
    sources = [*(ROOT / "operator" / "corral").rglob("*.py"), ROOT / "server_image" / "corral_server" / "metrics.py"]
    found = {name for source in sources for name in re.findall(r'"(corral_[a-z_]+|llamacpp:[a-z_]+)"', source.read_text())}
    return {DERIVED.sub("", name) for name in found}


@pytest.mark.parametrize("expression", [*targets(), *(rule["expr"] for rule in rules())])
def test_every_metric_that_is_asked_for_exists(expression: str) -> None:
    names = {DERIVED.sub("", name) for name in NAME.findall(expression)}
    assert names
    assert names <= known()


def test_every_metric_of_operator_and_gateway_that_is_documented_is_known() -> None:
    """Or the test above would take a name for right that nobody exports."""
    documented = set(re.findall(r"`(corral_[a-z_]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    assert {DERIVED.sub("", name) for name in documented} <= known()


def test_every_panel_has_its_place() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_they_are_rendered_when_they_are_asked_for() -> None:
    assert not [obj for obj in render() if obj["kind"] == "PrometheusRule" or obj["metadata"]["name"].endswith("-dashboard")]
    objects = render("metrics.dashboard.enabled=true", "metrics.alerts.enabled=true", "metrics.alerts.labels.release=prometheus")
    (board,) = (obj for obj in objects if obj["metadata"]["name"].endswith("-dashboard"))
    assert json.loads(board["data"]["corral.json"]) == DASHBOARD
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    (rule,) = (obj for obj in objects if obj["kind"] == "PrometheusRule")
    assert rule["spec"] == ALERTS
    assert rule["metadata"]["labels"]["release"] == "prometheus"
