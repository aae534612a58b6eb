"""ResourceSlices, DeviceClasses and ResourceClaims for the tests of this folder, as the API server gives them."""

from __future__ import annotations

from typing import Any

from corral.kube.claims import DEVICE, trim_claim
from corral.kube.pods import MANAGED_BY
from corral.kube.slices import trim_slice

DRIVER = "gpu.example"


def device(name: str = "gpu-0", *, uuid: str | None = "GPU-0", memory: str = "8Gi", **more: Any) -> dict[str, Any]:
    attributes = {"uuid": {"string": uuid}} if uuid else {}
    return {
        "name": name,
        "attributes": attributes | {"productName": {"string": "L4"}} | more.pop("attributes", {}),
        "capacity": {"memory": {"value": memory}},
        **more,
    }


def resource_slice(
    *devices: dict[str, Any], name: str = "s1", node: str = "node-1", generation: int = 1, count: int = 1, **more: Any
) -> dict[str, Any]:
    pool = {"name": more.get("pool", node), "generation": generation, "resourceSliceCount": count}
    spec = {"driver": more.get("driver", DRIVER), "nodeName": node, "pool": pool, "devices": list(devices)}
    return trim_slice({"metadata": {"name": name, "uid": name}, "spec": spec})


def device_class(name: str = DRIVER, *expressions: str) -> dict[str, Any]:
    told = expressions or (f'device.driver == "{DRIVER}"',)
    return {"metadata": {"name": name}, "spec": {"selectors": [{"cel": {"expression": text}} for text in told]}}


def allocated(*names: str, node: str = "node-1", admin: bool = False) -> dict[str, Any]:
    results = [{"driver": DRIVER, "pool": node, "device": name, "request": "gpu"} | ({"adminAccess": True} if admin else {}) for name in names]
    return {"allocation": {"devices": {"results": results}}, "reservedFor": [{"name": "a-pod", "resource": "pods", "uid": "p"}]}


def foreign_claim(name: str = "theirs", status: dict[str, Any] | None = None, namespace: str = "other") -> dict[str, Any]:
    return trim_claim({"metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"}, "status": status or {}})


def our_claim(manifest: dict[str, Any], status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    assert manifest["metadata"]["labels"][MANAGED_BY] == "corral"
    assert DEVICE in manifest["metadata"]["annotations"]
    return trim_claim(manifest | {"metadata": manifest["metadata"] | {"uid": "uid-ours"} | metadata, "status": status or {}})
