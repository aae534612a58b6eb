"""What every scenario stands on: namespaces that enforce Pod Security `restricted`, a cache volume, a hub that serves the models, the chart.

Owns the objects that it makes; removes all of them. It must never reach into the operator: everything goes through kubectl and the gateway.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from e2e.support.kubectl import Kubectl, conditions, until

MODELS = "models"
SYSTEM = "corral-system"
HUB = "hub"
HUB_URL = f"http://hub.{HUB}.svc.cluster.local:8000"
MIB = 1024 * 1024


def namespace(name: str) -> dict[str, Any]:
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def deployment(name: str, source: str, **spec: Any) -> dict[str, Any]:
    """A ModelDeployment; small engine settings, so that many fit on a test machine."""
    model = {"source": source, **spec.pop("model", {})}
    engine = {"contextLength": 512, "slots": 2, "microBatch": 64, "promptCache": {"size": "16Mi"}, **spec.pop("engine", {})}
    return {
        "apiVersion": "corral.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": MODELS},
        "spec": {"model": model, "engine": engine, **spec},
    }


def pool(capacity: str, margin: str, **spec: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "devices": {"from": "HostMemory", "hostMemory": {"capacity": capacity}},
        "memoryMargin": margin,
        "eviction": {"minResidency": "0s", "drainTimeout": "10s"},
        "fairness": {"maxWait": "30s", "turn": "10s"},
        "idle": {"sleepAfter": "1h", "stopAfter": "2h"},
        "hold": {"timeout": "120s", "heartbeat": "5s"},
        "cache": {"type": "PersistentVolumeClaim", "claimName": "model-cache"},
    }
    return {"apiVersion": "corral.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": "default"}, "spec": {**base, **spec}}


@dataclass
class World:
    kubectl: Kubectl
    gateway: str  # http://address:port of the Ingress controller
    host: str  # the host name that the chart's Ingress answers to
    nodes: list[str]
    sources: dict[str, str] = field(default_factory=dict)  # what the hub serves: short name -> source

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl.apply(*objects)

    def model(self, name: str) -> dict[str, Any] | None:
        return self.kubectl.get("md", name, MODELS)

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        return conditions(self.model(name)).get(kind, {})

    def pods(self, model: str = "") -> list[dict[str, Any]]:
        selector = "app.kubernetes.io/component=server" + (f",corral.dev/model={model}" if model else "")
        return self.kubectl.list("pods", MODELS, selector)

    def operators(self) -> list[dict[str, Any]]:
        return self.kubectl.list("pods", SYSTEM, "app.kubernetes.io/component=operator")

    def kill_operator(self) -> None:
        """All of them, without a word."""
        for pod in self.operators():
            self.kubectl.delete("pod", pod["metadata"]["name"], "--grace-period=0", "--force", namespace=SYSTEM, wait=False)

    def wait_ready(self, *names: str, timeout: float = 120) -> None:
        self.kubectl.run("wait", "md", *names, "-n", MODELS, "--for=condition=Ready", f"--timeout={timeout:g}s", timeout=timeout + 10)

    def wait_condition(self, name: str, kind: str, status: str, reason: str = "", timeout: float = 90) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            seen = self.condition(name, kind)
            return seen if seen.get("status") == status and (not reason or seen.get("reason") == reason) else None

        return until(f"{name}: {kind}={status} {reason}", probe, timeout)

    def loaded(self) -> set[str]:
        return {md["metadata"]["name"] for md in self.kubectl.list("md", MODELS) if (md.get("status") or {}).get("loadedReplicas")}

    def remove_models(self) -> None:
        names = [md["metadata"]["name"] for md in self.kubectl.list("md", MODELS)]
        if names:
            self.kubectl.delete("md", *names, namespace=MODELS)
        until("all server pods gone", lambda: not self.kubectl.list("pods", MODELS, "app.kubernetes.io/managed-by=corral"), 90)
