"""What runs beside Kubernetes itself: CoreDNS, traefik as Ingress and Gateway API controller, the Gateway API's CRDs, a class of local volumes."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twonodes import network, processes, tools
from twonodes.pki import Authority
from twonodes.state import ClusterError

GATEWAY_NAMESPACE, GATEWAY = "ingress", "web"
CLASS = "traefik"
STORAGE_CLASS = "corral-local"
HTTP_PORT = 80
CONTROLLERS = {"ingress": "traefik.io/ingress-controller", "gateway": "traefik.io/gateway-controller"}


def kubectl(kubeconfig: Path, *arguments: str, stdin: str = "") -> str:
    command = [str(tools.folder(tools.KUBERNETES) / "kubectl"), f"--kubeconfig={kubeconfig}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def add_ingress(kubeconfig: Path, more: Sequence[dict[str, Any]] = (), patience: float = 20) -> None:
    """The Gateway API and what stands on it, and `more` with it: each call of kubectl costs most of a second."""
    crds = tools.folder(tools.GATEWAY_API) / "crds"
    kubectl(kubeconfig, "apply", "--server-side", "--force-conflicts", "-f", str(crds))
    end = time.monotonic() + patience
    while True:  # a CRD that was just applied is not served yet
        try:
            apply(kubeconfig, [*ingress_objects(), *more])
        except ClusterError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def ingress_objects() -> list[dict[str, Any]]:
    """The classes, and a Gateway that takes routes of every namespace."""
    listener = {"name": "http", "port": HTTP_PORT, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": GATEWAY_NAMESPACE}},
        _object("networking.k8s.io/v1", "IngressClass", CLASS, spec={"controller": CONTROLLERS["ingress"]}),
        _object("gateway.networking.k8s.io/v1", "GatewayClass", CLASS, spec={"controllerName": CONTROLLERS["gateway"]}),
        _object("gateway.networking.k8s.io/v1", "Gateway", GATEWAY, GATEWAY_NAMESPACE, spec={"gatewayClassName": CLASS, "listeners": [listener]}),
        _object(
            "storage.k8s.io/v1",
            "StorageClass",
            STORAGE_CLASS,
            provisioner="kubernetes.io/no-provisioner",
            volumeBindingMode="WaitForFirstConsumer",
            reclaimPolicy="Retain",
        ),
    ]


def dns_objects() -> list[dict[str, Any]]:
    """The DNS Service of every cluster, in front of a process that is no pod: hence no selector, and endpoints by hand."""
    ports = [("dns", "UDP", 53), ("dns-tcp", "TCP", 53)]
    service = {"clusterIP": network.DNS_SERVICE, "ports": [{"name": n, "protocol": p, "port": q, "targetPort": 1053} for n, p, q in ports]}
    endpoints = _object("discovery.k8s.io/v1", "EndpointSlice", "kube-dns", "kube-system")
    endpoints["metadata"]["labels"] = {"kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "corral-e2e"}
    endpoints |= {
        "addressType": "IPv4",
        "endpoints": [{"addresses": [network.address(1)], "conditions": {"ready": True}}],
        "ports": [{"name": n, "protocol": p, "port": 1053} for n, p, _ in ports],
    }
    return [_object("v1", "Service", "kube-dns", "kube-system", spec=service), endpoints]


def apply(kubeconfig: Path, objects: list[dict[str, Any]]) -> None:
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    kubectl(kubeconfig, "apply", "--server-side", "-f", "-", stdin=content)


def start_coredns(state: Path, authority: Authority) -> None:
    address, zones = network.address(1), "cluster.local in-addr.arpa"
    corefile = f"""(all) {{
    bind {address}
    errors
}}
cluster.local:1053 in-addr.arpa:1053 {{
    import all
    kubernetes {zones} {{
        kubeconfig {authority.kubeconfig("admin")} corral-e2e
        ttl 1
    }}
    ready {address}:8181
}}
.:1053 {{
    import all
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
    config = state / "control-plane" / "Corefile"
    config.write_text(corefile)
    program = tools.folder(tools.COREDNS) / "coredns"
    processes.start(state, "coredns", [*network.enter(1), str(program), "-conf", str(config)])


def traefik_config(address: str) -> dict[str, Any]:
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "api": {"dashboard": False},
        "log": {"level": "INFO", "noColor": True},
        "entryPoints": {"web": {"address": f"{address}:{HTTP_PORT}"}},
        "providers": {
            "kubernetesIngress": {"ingressClass": CLASS, "ingressEndpoint": {"ip": address}},
            "kubernetesGateway": {"statusAddress": {"ip": address}},
        },
    }


def start_traefik(state: Path, authority: Authority) -> None:
    config = state / "control-plane" / "traefik.yaml"
    config.write_text(json.dumps(traefik_config(network.address(1)), indent=1))
    command = [*network.enter(1), str(tools.folder(tools.TRAEFIK) / "traefik"), f"--configfile={config}"]
    processes.start(state, "traefik", command, {"KUBECONFIG": str(authority.kubeconfig("admin"))})


def _object(version: str, kind: str, name: str, namespace: str = "", **content: Any) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}
