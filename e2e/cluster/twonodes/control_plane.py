"""etcd, the API server, the controller manager and the scheduler, as processes in the first node's network."""

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from twonodes import network, processes, tools
from twonodes.pki import Authority
from twonodes.state import ClusterError

SERVER = f"https://{network.address(1)}:6443"


def certificates(folder: Path, nodes: list[str]) -> Authority:
    authority = Authority(folder, SERVER)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"]
    addresses = ["127.0.0.1", network.API_SERVICE, network.address(1), network.HOST]
    wanted: dict[str, tuple[str, tuple[str, ...]]] = {
        "apiserver": ("/CN=kube-apiserver", (*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses))),
        "apiserver-to-kubelet": ("/O=system:masters/CN=apiserver-to-kubelet", ()),
        "admin": ("/O=system:masters/CN=admin", ()),
        "controller-manager": ("/CN=system:kube-controller-manager", ()),
        "scheduler": ("/CN=system:kube-scheduler", ()),
        "proxy": ("/CN=system:kube-proxy", ()),
    }
    for index, node in enumerate(nodes, start=1):
        wanted[node] = (f"/O=system:nodes/CN=system:node:{node}", ())
        wanted[f"{node}-serving"] = (f"/CN={node}", (f"DNS:{node}", f"IP:{network.address(index)}"))
    authority.issue_all(wanted)
    authority.service_account_keys()
    return authority


def start(state: Path, authority: Authority) -> None:
    folder = state / "control-plane"
    folder.mkdir(exist_ok=True)
    etcd: list[str | Path] = ["--data-dir", folder / "etcd", "--unsafe-no-fsync", "--log-level=warn"]
    for flag, port in (("client", 2379), ("peer", 2380)):
        etcd.append(f"--listen-{flag}-urls=http://127.0.0.1:{port}")
    etcd += ["--advertise-client-urls=http://127.0.0.1:2379", "--initial-advertise-peer-urls=http://127.0.0.1:2380"]
    etcd += ["--initial-cluster=default=http://127.0.0.1:2380"]
    _start(state, "etcd", etcd)
    _start(state, "kube-apiserver", _apiserver(authority))


def start_controllers(state: Path, authority: Authority) -> None:
    own, ca = authority.kubeconfig("controller-manager"), authority.certificate("ca")
    _start(
        state,
        "kube-controller-manager",
        [
            *(f"--{flag}kubeconfig={own}" for flag in ("", "authentication-", "authorization-")),
            f"--root-ca-file={ca}",
            f"--service-account-private-key-file={authority.folder / 'service-account.key'}",
            f"--cluster-signing-cert-file={ca}",
            f"--cluster-signing-key-file={authority.key('ca')}",
            f"--requestheader-client-ca-file={ca}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--node-monitor-grace-period=20s",
        ],
    )
    config = state / "control-plane" / "scheduler.json"
    content = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(authority.kubeconfig("scheduler"))},
        "leaderElection": {"leaderElect": False},
    }
    config.write_text(json.dumps(content))
    _start(state, "kube-scheduler", [f"--config={config}"])


def wait_ready(state: Path, authority: Authority, patience: float = 60) -> None:
    end = time.monotonic() + patience
    while not ready(authority):
        if time.monotonic() > end or not processes.all_recorded_alive(state):
            raise ClusterError(f"the API server does not become ready; see {state}/logs/kube-apiserver.log and etcd.log")
        time.sleep(0.05)


def ready(authority: Authority) -> bool:
    try:
        context = ssl.create_default_context(cafile=str(authority.certificate("ca")))
        context.load_cert_chain(authority.certificate("admin"), authority.key("admin"))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        with opener.open(f"{SERVER}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _apiserver(authority: Authority) -> list[str]:
    ca, key, certificate = authority.certificate("ca"), authority.key, authority.certificate
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--service-cluster-ip-range={network.SERVICES}",
        "--secure-port=6443",
        f"--advertise-address={network.address(1)}",
        f"--tls-cert-file={certificate('apiserver')}",
        f"--tls-private-key-file={key('apiserver')}",
        f"--client-ca-file={ca}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={authority.folder / 'service-account.pub'}",
        f"--service-account-signing-key-file={authority.folder / 'service-account.key'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--kubelet-client-certificate={certificate('apiserver-to-kubelet')}",
        f"--kubelet-client-key={key('apiserver-to-kubelet')}",
        f"--kubelet-certificate-authority={ca}",
        "--kubelet-preferred-address-types=InternalIP",  # else logs and exec ask DNS for the node
        f"--requestheader-client-ca-file={ca}",  # without these the controller manager logs errors for ever
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--allow-privileged=true",
    ]


def _start(state: Path, program: str, arguments: Sequence[str | Path]) -> None:
    processes.start(state, program, [*network.enter(1), str(tools.folder(tools.KUBERNETES) / program), *map(str, arguments)])
