"""`prepare`, `up`, `down` and `load-image`: which cluster it is, and what is told about it in `<state>/env`."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from twonodes import addons, cluster, kind, tools
from twonodes.state import REPOSITORY, ClusterError, cache, locked, say, state

MODES = ("given", "kind", "nodes")


def prepare() -> int:
    """Only what takes minutes, once: the programs of the cluster that `up` would bring up."""
    with locked():
        _prepare(_choose())
    return 0


def up() -> int:
    """Brings the cluster up, or finds it up; prints the `env` file. A failure or an interruption takes away what was made."""
    with locked():
        folder = state()
        mode = _choose()
        if _mode(folder) == mode and _running(mode, folder):
            say(f"already up ({mode})")
        else:
            if folder.exists():
                say("taking away what a former run left")
                _down(folder)
            _prepare(mode)
            started = time.monotonic()
            folder.mkdir(mode=0o711, parents=True)
            (folder / "mode").write_text(mode)
            try:
                _start(mode, folder)
            except BaseException as error:
                if not isinstance(error, KeyboardInterrupt):
                    _keep_logs(folder)
                # A second interruption must not stop the cleaning.
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                _down(folder)
                if isinstance(error, KeyboardInterrupt):
                    say("interrupted; nothing is left behind")
                    return 130
                raise
            say(f"ready after {time.monotonic() - started:.1f} s ({mode})")
        print((folder / "env").read_text(), end="")
    return 0


def down() -> int:
    with locked():
        folder = state()
        _down(folder)
        shutil.rmtree(_failed_logs(folder), ignore_errors=True)
    return 0


def load_image(archives: list[str]) -> int:
    if not archives:
        raise ClusterError("usage: load-image ARCHIVE…")
    paths = [Path(name).resolve() for name in archives]
    for path in paths:
        if not path.is_file():
            raise ClusterError(f"{path} is no file")
    folder = state()
    mode = _mode(folder)
    if mode == "nodes":
        cluster.load(folder, *paths)
    elif mode == "kind":
        kind.load(*paths)
    elif mode == "given":
        raise ClusterError("KUBECONFIG_E2E names a cluster of yours: push the images where its nodes can pull them")
    else:
        raise ClusterError("there is no cluster: run up first")
    return 0


def _choose() -> str:
    forced = os.environ.get("CORRAL_E2E_CLUSTER", "")
    if forced and forced not in MODES:
        raise ClusterError(f"CORRAL_E2E_CLUSTER is {forced!r}: it must be one of {', '.join(MODES)}")
    if forced:
        return forced
    if os.environ.get("KUBECONFIG_E2E"):
        return "given"
    return "kind" if kind.docker_answers() else "nodes"


def _prepare(mode: str) -> None:
    if mode == "kind":
        kind.prepare()
    elif mode == "nodes":
        cluster.prepare()


def _mode(folder: Path) -> str:
    file = folder / "mode"
    return file.read_text() if file.exists() else ""


def _running(mode: str, folder: Path) -> bool:
    if mode == "given":
        return False  # what it names may have changed
    return kind.running(folder) if mode == "kind" else cluster.running(folder)


def _start(mode: str, folder: Path) -> None:
    values = {"given": _given, "kind": kind.up, "nodes": _nodes}[mode](folder)
    tool_folder = cache() / "tools" / "bin"
    values |= {
        "CORRAL_E2E_MODE": mode,
        "CORRAL_E2E_STATE": str(folder),
        "CORRAL_E2E_LOAD_IMAGE": str(REPOSITORY / "e2e" / "cluster" / "load-image"),
        "CORRAL_E2E_TOOLS": str(tool_folder),
    }
    if mode != "given":
        values |= {
            "CORRAL_E2E_INGRESS_CLASS": addons.CLASS,
            "CORRAL_E2E_GATEWAY": f"{addons.GATEWAY_NAMESPACE}/{addons.GATEWAY}",
            "CORRAL_E2E_STORAGE_CLASS": addons.STORAGE_CLASS,
        }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(values.items())]
    lines.append(f'case ":$PATH:" in *:{tool_folder}:*) ;; *) export PATH={shlex.quote(str(tool_folder))}:"$PATH" ;; esac')
    (folder / "env.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    (folder / "env.new").write_text("\n".join(lines) + "\n")
    (folder / "env.new").replace(folder / "env")


def _nodes(folder: Path) -> dict[str, str]:
    cluster.up(folder)
    return cluster.environment(folder)


def _given(folder: Path) -> dict[str, str]:
    named = Path(os.environ.get("KUBECONFIG_E2E", "")).resolve()
    if not named.is_file():
        raise ClusterError(f"KUBECONFIG_E2E is {os.environ.get('KUBECONFIG_E2E', '')!r}: it must name a kubeconfig file")
    if not shutil.which("kubectl"):
        tools.build(tools.KUBERNETES)
    search = f"{os.environ.get('PATH', '')}:{cache() / 'tools' / 'bin'}"
    command = ["kubectl", f"--kubeconfig={named}", "get", "nodes", "-o", "json"]
    done = subprocess.run(command, env=os.environ | {"PATH": search}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"the cluster that KUBECONFIG_E2E names does not answer: {done.stderr.strip()}")
    shutil.copyfile(named, folder / "kubeconfig")
    (folder / "kubeconfig").chmod(0o600)
    names = [item["metadata"]["name"] for item in json.loads(done.stdout)["items"]]
    passed_on = {name: os.environ[name] for name in ("CORRAL_E2E_INGRESS", "CORRAL_E2E_INGRESS_CLASS", "CORRAL_E2E_GATEWAY") if name in os.environ}
    return {"KUBECONFIG": str(folder / "kubeconfig"), "CORRAL_E2E_NODES": " ".join(names), **passed_on}


def _down(folder: Path) -> None:
    mode = _mode(folder)
    if mode == "kind" and kind.docker_answers():
        kind.down()
    if mode != "nodes" and folder.exists():
        shutil.rmtree(folder)
    if os.geteuid() == 0 and mode in {"nodes", ""} and shutil.which("ip"):
        cluster.down(folder)


def _failed_logs(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-failed-logs")


def _keep_logs(folder: Path) -> None:
    """The logs of an `up` that failed, beside the state folder, so that the reason outlives the cleaning; `down` removes them."""
    kept = _failed_logs(folder)
    shutil.rmtree(kept, ignore_errors=True)
    if (folder / "logs").is_dir():
        shutil.copytree(folder / "logs", kept)
        say(f"logs are kept in {kept}")


def run(command: str) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    try:
        sys.exit(load_image(sys.argv[1:]) if command == "load-image" else {"prepare": prepare, "up": up, "down": down}[command]())
    except ClusterError as error:
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
