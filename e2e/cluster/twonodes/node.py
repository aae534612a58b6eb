"""One node: containerd, the kubelet and kube-proxy in a network of its own, everything they keep below `<state>/<node>`."""

import json
import os
import re
import time
from pathlib import Path

from twonodes import cgroups, images, network, processes, tools
from twonodes.pki import Authority
from twonodes.state import ClusterError

UNITS = {"": 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "k": 1000, "M": 1000**2, "G": 1000**3}
# Written to by containerd's shims, libcni and the kubelet, whatever their configuration says.
FIXED_FOLDERS = (Path("/run/containerd"), Path("/var/lib/cni"), Path("/var/lib/kubelet"), Path("/var/log/containers"))


class Node:
    def __init__(self, state: Path, index: int) -> None:
        self.state = state
        self.index = index
        self.name = f"node-{index}"
        self.folder = state / self.name

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    def start_containerd(self) -> None:
        """In a mount namespace of the node's own: its mounts end with its processes, and each node has the folders that cannot be configured."""
        for name in ("cni", "cni-state", "cdi", "kubelet", "pod-logs", "plugins"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "cni" / "10-corral.conflist").write_text(json.dumps(self._cni(), indent=1))
        config = self.folder / "containerd.toml"
        config.write_text(self._containerd())
        steps = ["mount --make-rshared /"]
        for fixed in FIXED_FOLDERS:
            own = self.folder / "fixed" / str(fixed).strip("/").replace("/", "-")
            own.mkdir(parents=True)
            fixed.mkdir(parents=True, exist_ok=True)
            steps.append(f"mount --bind {own} {fixed}")
        steps.append('exec "$@"')
        apart = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "; ".join(steps), "sh"]
        self._start("containerd", [*apart, str(tools.folder(tools.CONTAINERD) / "containerd"), "--config", str(config)], self._path())

    def wait_containerd(self, patience: float = 30) -> None:
        end = time.monotonic() + patience
        while not (self.socket.exists() and images.answers(self.socket)):
            if time.monotonic() > end or not processes.all_recorded_alive(self.state):
                raise ClusterError(f"containerd of {self.name} does not answer; see {self.state}/logs/{self.name}-containerd.log")
            time.sleep(0.05)

    def start_agents(self, authority: Authority, memory: str) -> None:
        kubelet, proxy = self.folder / "kubelet.json", self.folder / "kube-proxy.json"
        kubelet.write_text(json.dumps(self._kubelet(authority, memory), indent=1))
        proxy.write_text(json.dumps(self._proxy(authority), indent=1))
        (self.folder / "resolv.conf").write_text("# Pods ask the cluster's DNS; it knows no other.\n")
        programs = tools.folder(tools.KUBERNETES)
        flags = [
            f"--config={kubelet}",
            f"--kubeconfig={authority.kubeconfig(self.name)}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet' / 'pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={network.address(self.index)}",
        ]
        containerd = processes.recorded(self.state, f"{self.name}-containerd")
        self._start("kubelet", ["nsenter", f"--mount=/proc/{containerd}/ns/mnt", str(programs / "kubelet"), *flags], self._path())
        self._start("kube-proxy", [str(programs / "kube-proxy"), f"--config={proxy}"])

    def _start(self, program: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        processes.start(self.state, f"{self.name}-{program}", [*network.enter(self.index), *command], environment)

    def _path(self) -> dict[str, str]:
        return {"PATH": f"{tools.folder(tools.CONTAINERD)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

    def _cni(self) -> dict[str, object]:
        addresses = {
            "type": "host-local",
            "dataDir": str(self.folder / "cni-state"),
            "ranges": [[{"subnet": network.pod_range(self.index)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipMasq": False, "ipam": addresses}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "1.0.0", "name": network.namespace(self.index), "plugins": [bridge, portmap]}

    def _containerd(self) -> str:
        runtime = "io.containerd.cri.v1.runtime"
        return f"""version = 3
root = "{self.folder}/containerd"
state = "{self.folder}/run"
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
address = "{self.socket}"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{images.PAUSE}"

[plugins.'{runtime}']
enable_cdi = true
cdi_spec_dirs = ["{self.folder}/cdi"]
restrict_oom_score_adj = true  # without CAP_SYS_RESOURCE a sandbox could not be given a lower one, and would die
netns_mounts_under_state_dir = true
device_ownership_from_security_context = true

[plugins.'{runtime}'.containerd]
default_runtime_name = "runc"

[plugins.'{runtime}'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'{runtime}'.containerd.runtimes.runc.options]
Root = "{self.folder}/runc"
SystemdCgroup = false

[plugins.'{runtime}'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{self.folder}/cni"
use_internal_loopback = true
"""

    def _kubelet(self, authority: Authority, memory: str) -> dict[str, object]:
        config: dict[str, object] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": network.address(self.index),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority.certificate("ca"))},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(authority.certificate(f"{self.name}-serving")),
            "tlsPrivateKeyFile": str(authority.key(f"{self.name}-serving")),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroups.kubelet_root(self.name),
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "enforceNodeAllocatable": [],
            "podLogsDir": str(self.folder / "pod-logs"),
            "volumePluginDir": str(self.folder / "plugins"),
            "resolvConf": str(self.folder / "resolv.conf"),
            "clusterDomain": "cluster.local",
            "clusterDNS": [network.DNS_SERVICE],
            "serializeImagePulls": False,
            "evictionHard": dict.fromkeys(("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "1%"),
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        }
        if memory:
            config["systemReserved"] = {"memory": str(machine_memory() - quantity(memory))}
        return config

    def _proxy(self, authority: Authority) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "hostnameOverride": self.name,
            "oomScoreAdj": 0,
            "clientConnection": {"kubeconfig": str(authority.kubeconfig("proxy"))},
            # What comes from outside the pods is masqueraded, so that this machine too reaches a Service through a node.
            "detectLocalMode": "ClusterCIDR",
            "clusterCIDR": network.PODS,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "iptables": {"minSyncPeriod": "0.1s", "syncPeriod": "30s"},
        }


def machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def quantity(text: str) -> int:
    """The bytes that a memory quantity such as `8Gi` names; it must fit this machine."""
    found = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    if not found or found[2] not in UNITS:
        raise ClusterError(f"CORRAL_E2E_NODE_MEMORY is {text!r}: it must be a quantity such as 8Gi")
    value = int(found[1]) * UNITS[found[2]]
    if value > machine_memory():
        raise ClusterError(f"CORRAL_E2E_NODE_MEMORY is {text}: this machine has {machine_memory() // 1024**2}Mi")
    return value
