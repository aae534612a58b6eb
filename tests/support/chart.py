"""The chart as helm renders it."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.samples import ROOT

CHART = ROOT / "charts" / "corral"
NAMESPACE = "corral-system"
Json = dict[str, Any]


@cache
def helm_binary() -> str:
    """$HELM, else the tools cache's, else the PATH's; empty: there is none."""
    home = Path(os.environ.get("CORRAL_CACHE") or Path.home() / ".cache" / "corral")
    cached = sorted(home.glob("tools/helm-*/helm"))
    return shutil.which(os.environ.get("HELM", "")) or (str(cached[-1]) if cached else "") or shutil.which("helm") or ""


def helm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    if not helm_binary():
        pytest.skip("no helm: set HELM, or let `e2e/cluster/up` build one")
    done = subprocess.run([helm_binary(), *arguments], capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr}")
    return done


@cache
def _rendered(arguments: tuple[str, ...]) -> str:
    return helm("template", "corral", str(CHART), "--namespace", NAMESPACE, *arguments).stdout


def render(*settings: str, arguments: tuple[str, ...] = ()) -> list[Json]:
    """Every object, with values set as in `--set`."""
    given = tuple(word for setting in settings for word in ("--set", setting))
    return [found for found in yaml.safe_load_all(_rendered(given + arguments)) if found]


def only(objects: list[Json], kind: str, name: str = "") -> Json:
    found = [obj for obj in objects if obj["kind"] == kind and name in {"", obj["metadata"]["name"]}]
    assert len(found) == 1, f"{kind} {name}: {[obj['metadata']['name'] for obj in found]}"
    return found[0]


def pod_of(obj: Json) -> Json:
    """The pod's spec, of a pod or of what makes pods."""
    return obj["spec"] if obj["kind"] == "Pod" else obj["spec"]["template"]["spec"]


def env_of(obj: Json) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in pod_of(obj)["containers"][0]["env"]}
