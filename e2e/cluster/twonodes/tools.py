"""The programs that the cluster is made of: built once from pinned Go modules into the cache, or installed from Debian.

A version is written in one place, the `go.mod` of the tool's folder.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from twonodes.state import TOOL_SOURCES, ClusterError, cache, say

KUBERNETES_PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")
STAMP = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Tool:
    name: str  # the folder under tools/
    module: str  # whose version is the tool's
    what: str = "tool"  # what `go build` is asked for
    links: tuple[str, ...] = ()  # other names of the one program
    minutes: float = 1  # of a cold build on two cores, to say what to expect


KUBERNETES = Tool("kubernetes", "k8s.io/kubernetes", ".", KUBERNETES_PARTS, 8)
CONTAINERD = Tool("containerd", "github.com/containerd/containerd/v2", minutes=2)
COREDNS = Tool("coredns", "github.com/coredns/coredns", minutes=3)
HELM = Tool("helm", "helm.sh/helm/v4", minutes=3)
TRAEFIK = Tool("traefik", "github.com/traefik/traefik/v3", minutes=8)
POD = Tool("pod", "", "./...", minutes=0.2)
GPU_DRIVER = Tool("gpu-driver", "k8s.io/dynamic-resource-allocation", ".", minutes=2)
GATEWAY_API = Tool("gateway-api", "sigs.k8s.io/gateway-api", "", minutes=0.1)
KIND = Tool("kind", "sigs.k8s.io/kind", minutes=0.3)

DEBIAN = {
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
    "nsenter": "util-linux",
    "openssl": "openssl",
}


def version(tool: Tool) -> str:
    text = (TOOL_SOURCES / tool.name / "go.mod").read_text()
    if not tool.module:
        return "1"
    found = re.search(rf"^(?:require)?\s*{re.escape(tool.module)} v(\S+)", text, re.MULTILINE)
    if not found:
        raise ClusterError(f"tools/{tool.name}/go.mod does not require {tool.module}")
    return found[1]


def folder(tool: Tool) -> Path:
    return cache() / "tools" / f"{tool.name}-{version(tool)}"


def build(*tools: Tool) -> None:
    """Builds what the cache lacks, one after the other (each build uses every core), and links every program in `tools/bin`."""
    missing = [tool for tool in tools if not complete(tool)]
    if missing:
        _need_go()
        say(f"building {', '.join(tool.name for tool in missing)}: about {sum(tool.minutes for tool in missing):.0f} min on 2 cores, once")
    for tool in missing:
        started = time.monotonic()
        say(f"building {tool.name} {version(tool)} …")
        _build_one(tool)
        say(f"built {tool.name} in {time.monotonic() - started:.0f} s")
    _link(tools)


def complete(tool: Tool) -> bool:
    return (folder(tool) / ".complete").exists()


def _build_one(tool: Tool) -> None:
    final = folder(tool)
    final.parent.mkdir(parents=True, exist_ok=True)
    source = TOOL_SOURCES / tool.name
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{tool.name}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
        if tool is GATEWAY_API:
            _go(["mod", "download", tool.module], source, environment)
            module = _go(["list", "-m", "-f", "{{.Dir}}", tool.module], source, environment)
            shutil.copytree(Path(module) / "config" / "crd" / "standard", made / "crds", copy_function=shutil.copyfile)
        else:
            _go(["build", "-trimpath", "-ldflags", _ldflags(tool), "-o", f"{made}/", tool.what], source, environment)
        for name in tool.links:
            (made / name).symlink_to(tool.name)
        (made / ".complete").touch()
        made.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        made.rename(final)


def _ldflags(tool: Tool) -> str:
    flags = "-s -w"
    if tool is KUBERNETES:
        # Without the stamp a node reports a placeholder for its version, and `kubectl version` fails.
        number = version(tool)
        major, minor, _ = number.split(".")
        flags += f" -X {STAMP}.gitVersion=v{number} -X {STAMP}.gitMajor={major} -X {STAMP}.gitMinor={minor}"
    return flags


def _go(arguments: list[str], source: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(["go", *arguments], cwd=source, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"go {arguments[0]} in {source} failed (its own words are above)")
    return done.stdout.strip()


def _need_go() -> None:
    wanted = (1, 26)
    try:
        text = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        text = "none"
    found = re.match(r"go(\d+)\.(\d+)", text)
    if not found or (int(found[1]), int(found[2])) < wanted:
        raise ClusterError(f"building the cluster's tools needs Go 1.26 or newer on PATH (found: {text.strip()})")


def _link(tools: tuple[Tool, ...]) -> None:
    bin_folder = cache() / "tools" / "bin"
    bin_folder.mkdir(parents=True, exist_ok=True)
    for tool in tools:
        for program in folder(tool).iterdir():
            link = bin_folder / program.name
            if os.access(program, os.X_OK) and not program.is_dir() and not (link.is_symlink() and link.readlink() == program):
                fresh = bin_folder / f".{program.name}.new"
                fresh.unlink(missing_ok=True)
                fresh.symlink_to(program)
                fresh.replace(link)


def install_debian_packages() -> None:
    packages = [package for program, package in DEBIAN.items() if not shutil.which(program)]
    if not packages:
        return
    if not shutil.which("apt-get"):
        raise ClusterError(f"missing programs; install what Debian calls {' '.join(packages)}")
    say(f"installing {' '.join(packages)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
    if subprocess.run(install, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run(["apt-get", "update", "-q"], env=environment, stdout=subprocess.DEVNULL, check=False)
        if subprocess.run(install, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
            raise ClusterError(f"apt-get could not install {' '.join(packages)}")
