"""The programs that the cluster is made of: built once from pinned Go modules into the cache, or installed from Debian.

A version is written in one place, `tools/go.mod`: one module for all of them, so that what several need is compiled once.
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
    name: str
    module: str  # whose version is the tool's
    packages: tuple[str, ...]  # what `go build` is asked for
    minutes: float  # of a cold build on two cores after those before it, to say what to expect
    links: tuple[str, ...] = ()  # other names of the one program
    left_out: tuple[tuple[str, str], ...] = ()  # modules and their packages that tools/<name>/leftout stands in for


KUBERNETES = Tool("kubernetes", "k8s.io/kubernetes", ("./kubernetes",), 8, KUBERNETES_PARTS)
CONTAINERD = Tool(
    "containerd",
    "github.com/containerd/containerd/v2",
    tuple(f"github.com/containerd/containerd/v2/cmd/{program}" for program in ("containerd", "containerd-shim-runc-v2", "ctr")),
    1,
)
COREDNS = Tool("coredns", "github.com/coredns/coredns", ("./coredns",), 0.5)
HELM = Tool("helm", "helm.sh/helm/v4", ("helm.sh/helm/v4/cmd/helm",), 0.5)
TRAEFIK = Tool(
    "traefik",
    "github.com/traefik/traefik/v3",
    ("github.com/traefik/traefik/v3/cmd/traefik",),
    2,
    left_out=(("github.com/go-acme/lego/v5", "providers/dns"), ("github.com/traefik/traefik/v3", "pkg/provider/ecs")),
)
POD = Tool("pod", "", ("./pod/...",), 0.1)
GPU_DRIVER = Tool("gpu-driver", "k8s.io/dynamic-resource-allocation", ("./gpu-driver",), 0.5)
GATEWAY_API = Tool("gateway-api", "sigs.k8s.io/gateway-api", (), 0.1)
KIND = Tool("kind", "sigs.k8s.io/kind", ("sigs.k8s.io/kind",), 0.3)

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
    if not tool.module:
        return "1"
    text = (TOOL_SOURCES / "go.mod").read_text()
    found = re.search(rf"^(?:require)?\s*{re.escape(tool.module)} v(\S+)", text, re.MULTILINE)
    if not found:
        raise ClusterError(f"tools/go.mod does not require {tool.module}")
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
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{tool.name}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
        if tool is GATEWAY_API:
            module = _module(tool.module, environment)
            shutil.copytree(module / "config" / "crd" / "standard", made / "crds", copy_function=shutil.copyfile)
        else:
            modules = _with_stand_ins(tool, Path(scratch), environment)
            _go(["build", *modules, "-trimpath", "-ldflags", _ldflags(tool), "-o", f"{made}/", *tool.packages], environment)
        for name in tool.links:
            (made / name).symlink_to(tool.name)
        (made / ".complete").touch()
        made.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        made.rename(final)


def _with_stand_ins(tool: Tool, scratch: Path, environment: dict[str, str]) -> list[str]:
    """The flags that make `go build` take copies of the modules of which we leave something out."""
    if not tool.left_out:
        return []
    text = (TOOL_SOURCES / "go.mod").read_text().replace("=> ./", f"=> {TOOL_SOURCES}/")
    for module, package in tool.left_out:
        copy = scratch / module
        shutil.copytree(_module(module, environment), copy, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("*_test.go", "testdata"))
        shutil.rmtree(copy / package)
        shutil.copytree(TOOL_SOURCES / tool.name / "leftout" / Path(package).name, copy / package)
        text += f"\nreplace {module} => {copy}\n"
    (scratch / "go.mod").write_text(text)
    shutil.copyfile(TOOL_SOURCES / "go.sum", scratch / "go.sum")
    return [f"-modfile={scratch / 'go.mod'}"]


def _module(name: str, environment: dict[str, str]) -> Path:
    """Where its source is, fetched if it was not there."""
    _go(["mod", "download", name], environment)
    return Path(_go(["list", "-m", "-f", "{{.Dir}}", name], environment))


def _ldflags(tool: Tool) -> str:
    flags = "-s -w"
    if tool is KUBERNETES:
        # Without the stamp a node reports a placeholder for its version, and `kubectl version` fails.
        number = version(tool)
        major, minor, _ = number.split(".")
        flags += f" -X {STAMP}.gitVersion=v{number} -X {STAMP}.gitMajor={major} -X {STAMP}.gitMinor={minor}"
    return flags


def _go(arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(["go", *arguments], cwd=TOOL_SOURCES, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"go {arguments[0]} in {TOOL_SOURCES} failed (its own words are above)")
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
    apt = ["flock", str(cache() / "apt.lock"), "apt-get"]  # the images may be built at the same time
    install = [*apt, "install", "-q", "-y", "--no-install-recommends", *packages]
    if subprocess.run(install, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run([*apt, "update", "-q"], env=environment, stdout=subprocess.DEVNULL, check=False)
        if subprocess.run(install, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
            raise ClusterError(f"apt-get could not install {' '.join(packages)}")
