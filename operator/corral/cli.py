"""The command line. Thin: each command imports what it runs when it runs, so that `corral get` loads no server and the gateway no operator."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from corral.domain.model import Device
    from corral.local.events import Event

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Many models, few GPUs, one endpoint.")
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

RunDirOption = Annotated[
    Path | None, typer.Option(help="Where the local instance keeps its state. Default: $CORRAL_RUN_DIR, else ~/.cache/corral/run.")
]
NamespaceOption = Annotated[str, typer.Option("-n", "--namespace", help="Only this namespace.")]
KubeconfigOption = Annotated[str, typer.Option(help="A kubeconfig file: ask its cluster, not the local instance.")]


@app.command()
def up(
    files: Annotated[list[Path], typer.Option("-f", "--filename", help="A folder of manifests, or one file; watched. May be given several times.")],
    device: Annotated[
        list[str] | None, typer.Option(help="A device and its memory, such as gpu0=8Gi or host=16Gi. May be given several times.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the endpoint; 0: any free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address of the endpoint.")] = "127.0.0.1",
    run_dir: RunDirOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print errors.")] = False,
) -> None:
    """Serve a folder of manifests on this machine."""
    from corral.local import up as local  # noqa: PLC0415
    from corral.local.devices import DeviceArgumentError  # noqa: PLC0415
    from corral.local.processes import ServerMissingError  # noqa: PLC0415
    from corral.local.rundir import RunDirBusyError, default_run_dir  # noqa: PLC0415

    options = local.UpOptions(tuple(files), tuple(device or ()), host, port, (run_dir or default_run_dir()).absolute())
    _logging()
    try:
        _run(local.run(options, local.Console(_sayer(quiet), _teller(quiet), _starter(quiet))))
    except (FileNotFoundError, DeviceArgumentError, RunDirBusyError, ServerMissingError) as error:
        _fail(str(error))
    except OSError as error:
        if error.errno is None or "bind" not in str(error):
            raise
        _fail(f"--port {port}: {error.strerror}. Choose another one, or 0 for any free one")


@app.command()
def get(namespace: NamespaceOption = "", kubeconfig: KubeconfigOption = "", run_dir: RunDirOption = None) -> None:
    """List the models and what each of them does."""
    from corral import show  # noqa: PLC0415

    models = _in(_objects(run_dir, kubeconfig)["models"], namespace)
    if not models:
        err.print("there are no ModelDeployments" + (f" in namespace {namespace}" if namespace else ""))
        return
    several = len({model["metadata"].get("namespace", "") for model in models}) > 1
    _print(show.models_table(models, time.time(), namespaces=several))


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="NAME or NAMESPACE/NAME.")],
    namespace: NamespaceOption = "",
    kubeconfig: KubeconfigOption = "",
    run_dir: RunDirOption = None,
) -> None:
    """Say why a model is where it is, with the arithmetic."""
    from corral import show  # noqa: PLC0415

    objects = _objects(run_dir, kubeconfig)
    models = _in(objects["models"], namespace)
    found = _model(models, model)
    for line in show.explanation(found, time.time(), objects["pools"], objects["models"]):
        out.print(line, markup=False)


@app.command()
def top(kubeconfig: KubeconfigOption = "", run_dir: RunDirOption = None) -> None:
    """Show the devices, and what is on them."""
    from corral import show  # noqa: PLC0415

    objects = _objects(run_dir, kubeconfig)
    _print(show.devices_table(objects["pools"]))
    out.print()
    _print(show.replicas_table(objects["models"], time.time()))


@app.command()
def metrics(run_dir: RunDirOption = None) -> None:
    """Print the metrics of the corral up that runs here, and where Prometheus finds them."""
    from corral.local.client import LocalClient, NotRunningError  # noqa: PLC0415
    from corral.local.rundir import default_run_dir  # noqa: PLC0415

    try:
        client = LocalClient((run_dir or default_run_dir()).absolute())
        err.print(client.metrics, highlight=False)
        out.print(client.metrics_page(), markup=False, highlight=False, soft_wrap=True, end="")
    except (NotRunningError, OSError) as error:
        _fail(str(error))


@app.command()
def prefetch(
    model: Annotated[str, typer.Argument(help="NAME or NAMESPACE/NAME.")],
    node: Annotated[str, typer.Option(help="The node, on a cluster. Default: one that the scheduler chooses in the model's pool.")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that it may take, on a cluster.")] = 3600.0,
    namespace: NamespaceOption = "",
    kubeconfig: KubeconfigOption = "",
    run_dir: RunDirOption = None,
) -> None:
    """Fetch a model's file into the cache of a node and read it into memory, before anybody asks for the model."""
    from corral.api.types import format_rounded  # noqa: PLC0415
    from corral.local.client import LocalClient, NotRunningError  # noqa: PLC0415
    from corral.local.rundir import default_run_dir  # noqa: PLC0415

    chosen = (run_dir or default_run_dir()).absolute()
    objects = _objects(run_dir, kubeconfig)
    models = _in(objects["models"], namespace)
    found = _model(models, model)
    try:
        here = not kubeconfig and bool(LocalClient(chosen).pid)
    except NotRunningError:
        here = False
    if here:
        from corral.local import prefetch as local  # noqa: PLC0415

        try:
            answer = local.prefetch(found, objects["pools"], chosen)
        except local.PrefetchError as error:
            _fail(str(error))
    else:
        from corral.kube import prefetch as kube  # noqa: PLC0415

        where = (found["metadata"].get("namespace", ""), found["metadata"]["name"])
        try:
            answer = asyncio.run(kube.prefetch(*where, node, kubeconfig, timeout, lambda text: err.print(text, style="dim", markup=False)))
        except kube.PrefetchError as error:
            _fail(str(error))
    at = f" on {answer['node']}" if "node" in answer else ""
    out.print(f"{found['metadata']['name']}: {format_rounded(answer['bytes'])} in the cache{at}, after {answer['seconds']} s", markup=False)


@app.command()
def simulate(
    scenario: Annotated[Path, typer.Argument(help="A scenario file; see bench/scenarios.")],
    seed: Annotated[int | None, typer.Option(help="Another seed than the file's.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print the summary.")] = False,
) -> None:
    """Run a scenario in virtual time: the real decisions over simulated pods, with every invariant checked after each event."""
    import yaml  # noqa: PLC0415

    from corral.simulate.files import ScenarioError, read  # noqa: PLC0415
    from corral.simulate.report import failure, summary, timeline  # noqa: PLC0415
    from corral.simulate.shrink import shortest  # noqa: PLC0415
    from corral.simulate.world import World  # noqa: PLC0415

    try:
        chosen = read(yaml.safe_load(scenario.read_text()), seed)
    except (OSError, yaml.YAMLError, ScenarioError) as error:
        _fail(f"{scenario}: {error}")
    result = World(chosen).run()
    for line in summary(result) if quiet else (*timeline(result), "", *summary(result)):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if result.failure is not None:
        for line in failure(shortest(chosen)):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


@app.command()
def operator() -> None:
    """Run the operator in a cluster; its settings come from the environment."""
    from corral import bootstrap  # noqa: PLC0415

    bootstrap.operator()


@app.command()
def gateway() -> None:
    """Run a gateway in a cluster; its settings come from the environment."""
    from corral import bootstrap  # noqa: PLC0415

    bootstrap.gateway()


def main() -> None:
    app()


def _run(coroutine: Any) -> None:
    try:
        import uvloop  # noqa: PLC0415 - where there is none, asyncio's own loop serves
    except ImportError:
        asyncio.run(coroutine)
    else:
        uvloop.run(coroutine)


def _logging() -> None:
    import logging  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def _objects(run_dir: Path | None, kubeconfig: str) -> Mapping[str, Any]:
    """Models and pools of the local instance when one runs, else of the cluster that the kubeconfig names."""
    from corral.local.client import LocalClient, NotRunningError  # noqa: PLC0415
    from corral.local.rundir import default_run_dir  # noqa: PLC0415

    if not kubeconfig:
        chosen = (run_dir or default_run_dir()).absolute()
        try:
            return LocalClient(chosen).state()
        except NotRunningError as error:
            if run_dir is not None:
                _fail(str(error))
    from corral.kube.listing import ClusterUnreachableError, list_objects  # noqa: PLC0415

    try:
        return asyncio.run(list_objects(kubeconfig))
    except ClusterUnreachableError as error:
        _fail(f"no corral up runs here, and the cluster cannot be asked: {error}")


def _print(lines: Iterable[Text]) -> None:
    for line in lines:
        out.print(line, crop=False, overflow="ignore", no_wrap=True, soft_wrap=True)


def _in(models: Sequence[Mapping[str, Any]], namespace: str) -> list[Mapping[str, Any]]:
    return [model for model in models if not namespace or model["metadata"].get("namespace") == namespace]


def _model(models: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    from corral import show  # noqa: PLC0415

    found = show.find_model(models, name)
    if found is None:
        _fail(f"there is no ModelDeployment {name}; there are: {', '.join(each['metadata']['name'] for each in models) or 'none'}")
    return found


def _fail(text: str) -> NoReturn:
    err.print(f"[bold red]error:[/] {text}" if "[" not in text else f"error: {text}", markup="[" not in text)
    raise typer.Exit(1)


def _sayer(quiet: bool) -> Any:
    def say(level: str, text: str) -> None:
        if level == "error" or not quiet:
            err.print(f"{level}: {text}", style="bold red" if level == "error" else "dim", markup=False)

    return say


def _teller(quiet: bool) -> Any:
    def tell(event: Event) -> None:
        if not quiet:
            at = time.strftime("%H:%M:%S", time.localtime(event.at))
            out.print(f"{at}  {event.object:<24}  {event.reason:<18}  {event.message}", style="yellow" if event.warning else None, markup=False)

    return tell


def _starter(quiet: bool) -> Any:
    def started(endpoint: str, devices: Sequence[Device], how: str, models: Sequence[str]) -> None:
        from corral.api.types import format_rounded  # noqa: PLC0415

        if quiet:
            return
        told = ", ".join(f"{device.key.id} {format_rounded(device.capacity)}, {format_rounded(device.margin)} left free" for device in devices)
        out.print(f"devices: {told} ({how})", markup=False)
        out.print(f"models:  {', '.join(models) or 'none yet; put a manifest into the folder'}", markup=False)
        out.print(f"serving: {endpoint}/v1   (Ctrl-C ends it)", markup=False)
        if models:
            body = f'{{"model": "{models[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
            out.print(f"try:     curl {endpoint}/v1/chat/completions -H 'content-type: application/json' -d '{body}'", markup=False)

    return started


if __name__ == "__main__":
    main()
