"""Images without a registry: archives imported into each node's containerd, and the two small images that the cluster itself needs."""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

from twonodes import tools
from twonodes.state import ClusterError

PAUSE = "localhost/corral-pause:1"
PROBE = "localhost/corral-probe:1"


def answers(socket: Path) -> bool:
    return subprocess.run(_ctr(socket, "version"), capture_output=True, check=False).returncode == 0


def load(socket: Path, *archives: Path) -> None:
    for archive in archives:
        done = subprocess.run([*_ctr(socket, "images", "import"), "--local", str(archive)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{archive} could not be imported: {done.stderr.strip()}")


def own_archives() -> list[Path]:
    """The archives of `pause`, which holds a pod's namespaces, and of `probe`, which the cluster's own test runs."""
    folder = tools.folder(tools.POD)
    wanted = ((PAUSE, "pause", ["/pause"]), (PROBE, "probe", ["/probe", "serve", ":8080"]))
    return [_write(folder / f"{program}.tar", tag, folder / program, command) for tag, program, command in wanted]


def _ctr(socket: Path, *arguments: str) -> list[str]:
    return [str(tools.folder(tools.CONTAINERD) / "ctr"), "--address", str(socket), "--namespace", "k8s.io", *arguments]


def _write(archive: Path, tag: str, program: Path, command: list[str]) -> Path:
    if archive.exists():
        return archive
    layer = _tar({program.name: program.read_bytes()})
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": command[:1], "Cmd": command[1:], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    parts = {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode(), "layer.tar": layer}
    fresh = archive.with_suffix(".new")
    fresh.write_bytes(_tar(parts))
    return fresh.replace(archive)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
