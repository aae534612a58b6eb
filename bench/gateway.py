"""What the gateway costs beside others, in one run: `python bench/gateway.py [--seconds 5] [--peers nginx,vllm-router,litellm] [--streams 2000]`.

The same mock pod answers behind each proxy. `wrk` (Debian) sends; the solid columns are CPU time of the proxy's process tree for each request or
streamed chunk, because wall time on a shared machine says little. Proxy on core 0, everything else on the other cores. nginx comes from Debian,
vllm-router and litellm from PyPI, each in its own virtual environment under the cache folder (`--install` makes them). A peer that is not there is
left out, and said so.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("CORRAL_CACHE", Path.home() / ".cache" / "corral")) / "bench"
PATH = "/v1/chat/completions"
CHUNKS = 64
PINS = {"vllm-router": "vllm-router==0.1.17", "litellm": "litellm[proxy]"}


def body(size, *, stream=False):
    return json.dumps({"model": "bench", "stream": stream, "messages": [{"role": "user", "content": "a" * size}]}, separators=(",", ":"))


def others():
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(str(core) for core in cores[1:]) or str(cores[0])


def start(stack, command, core, **options):
    process = subprocess.Popen(["taskset", "-c", core, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options)

    def stop():
        tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))] if process.poll() is None else []
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()
        process.stdout.close()

    stack.callback(stop)
    return process


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


class Proxy:
    """A running proxy: where it listens and what it uses."""

    def __init__(self, name, process, port, headers=()):
        self.name, self.process, self.port, self.headers = name, process, port, dict(headers)
        self.url = f"http://127.0.0.1:{port}{PATH}"

    def tree(self):
        if self.process is None:
            return []
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu(self):
        return sum(sum(one.cpu_times()[:2]) for one in self.tree())

    def memory(self):
        return sum(one.memory_info().rss for one in self.tree())


def corral(stack, pod):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "operator")}
    process = start(stack, [sys.executable, str(HERE / "gateway_alone.py"), str(pod), "--key"], "0", env=environment)
    told = json.loads(process.stdout.readline())
    return Proxy("corral", process, told["port"], {"authorization": f"Bearer {told['key']}"})


def nginx(stack, pod):
    if not shutil.which("nginx"):
        return None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    port = free_port()
    (folder / "nginx.conf").write_text(
        f"""worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 16384; }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
 uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
 upstream pod {{ server 127.0.0.1:{pod}; keepalive 64; }}
 server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 100000000; client_max_body_size 0; client_body_buffer_size 1m;
  location / {{ proxy_pass http://pod; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}"""
    )
    return Proxy("nginx", start(stack, ["nginx", "-c", str(folder / "nginx.conf")], "0"), port)


def vllm_router(stack, pod):
    program = CACHE / "vllm-router" / "bin" / "vllm-router"
    if not program.exists():
        return None
    port, metrics = free_port(), free_port()
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{pod}"]
    command += ["--policy", "round_robin", "--prometheus-port", str(metrics), "--log-level", "error"]
    return Proxy("vllm-router", start(stack, command, "0"), port)


def litellm(stack, pod):
    program = CACHE / "litellm" / "bin" / "litellm"
    if not program.exists():
        return None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    port = free_port()
    (folder / "config.yaml").write_text(
        json.dumps(
            {
                "model_list": [
                    {"model_name": "bench", "litellm_params": {"model": "openai/bench", "api_base": f"http://127.0.0.1:{pod}/v1", "api_key": "x"}}
                ]
            }
        )
    )
    command = [str(program), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return Proxy("litellm", start(stack, command, "0"), port, {"authorization": "Bearer x"})


def wait_for(proxy, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        request = urllib.request.Request(proxy.url, body(10).encode(), {"content-type": "application/json", **proxy.headers})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                if answer.status == 200:
                    return True
        except (OSError, urllib.error.URLError):
            time.sleep(0.3)
    return False


def wrk(proxy, text, connections, seconds):
    """Answers and errors of one run."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        headers = {"content-type": "application/json", **proxy.headers}
        script.write('wrk.method="POST"\n' + "".join(f"wrk.headers[{json.dumps(k)}]={json.dumps(v)}\n" for k, v in headers.items()))
        script.write(f"wrk.body=[==[{text}]==]\n")
        errors = "s.errors.status+s.errors.read+s.errors.connect+s.errors.timeout"
        script.write(f'done=function(s,l,r) io.write(string.format("\\nRESULT %d %d\\n", s.requests, {errors})) end\n')
        script.flush()
        command = ["taskset", "-c", others(), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", script.name, proxy.url]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    done, errors = next(line.split()[1:] for line in output.splitlines() if line.startswith("RESULT"))
    return int(done), int(errors)


def cost(proxy, text, connections, seconds, per=1):
    """CPU microseconds for each answer (or chunk), answers a second, errors."""
    wrk(proxy, text, connections, 1)
    before, began = proxy.cpu(), time.monotonic()
    done, errors = wrk(proxy, text, connections, seconds)
    spent, took = proxy.cpu() - before, time.monotonic() - began
    return spent / max(1, done * per) * 1e6, done / took, errors


async def first_bytes(proxy, rate, seconds):
    """Milliseconds to the first byte at a steady rate of requests over kept connections."""
    text = body(1000).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in proxy.headers.items())
    data = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{extra}content-length: {len(text)}\r\n\r\n".encode() + text
    idle, times, tasks = [], [], []

    async def one():
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", proxy.port)
        began = time.perf_counter()
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        times.append((time.perf_counter() - began) * 1000)
        lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if lengths:
            await reader.readexactly(lengths[0])
            idle.append((reader, writer))
        else:
            writer.close()

    due = time.perf_counter()
    for _ in range(int(rate * seconds)):
        due += 1 / rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one()))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    times.sort()
    return statistics.median(times), times[int(len(times) * 0.99)]


async def open_streams(proxy, count, seconds):
    """Resident bytes before and with `count` open streams, how many failed, and how far memory moved while they ran."""
    text = body(100, stream=True).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in proxy.headers.items())
    data = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{extra}content-length: {len(text)}\r\n\r\n".encode() + text
    before = proxy.memory()
    ready, broken, stop = 0, 0, asyncio.Event()

    async def one():
        nonlocal ready, broken
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            while not stop.is_set():
                writer.write(data)
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 200 " not in head.split(b"\r\n")[0]:
                    raise ConnectionError(head)
                ready += 1
                while not (await reader.readuntil(b"\r\n\r\n")).endswith(b"0\r\n\r\n"):
                    pass
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            broken += 1

    tasks = []
    for _ in range(count):
        tasks.append(asyncio.ensure_future(one()))
        if len(tasks) % 50 == 0:
            await asyncio.sleep(0.05)
    while ready < count and not broken:
        await asyncio.sleep(0.1)
    first = proxy.memory()
    await asyncio.sleep(seconds)
    last = proxy.memory()
    stop.set()
    await asyncio.gather(*tasks)
    return before, first, last, broken


def install():
    for name, pin in PINS.items():
        folder = CACHE / name
        if not folder.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(folder / "bin" / "pip"), "install", "-q", pin], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="nginx,vllm-router")
    parser.add_argument("--streams", type=int, default=0, help="open so many streams at once (the gateway only)")
    parser.add_argument("--stream-seconds", type=int, default=60)
    parser.add_argument("--install", action="store_true", help="make the peers' environments first")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.install:
        install()
    makers = {"nginx": nginx, "vllm-router": vllm_router, "litellm": litellm}
    results = {}
    with contextlib.ExitStack() as stack:
        mock = start(stack, [sys.executable, str(HERE / "mock_upstream.py"), "--chunks", str(CHUNKS)], others())
        pod = int(mock.stdout.readline())
        direct = Proxy("direct", None, pod)
        proxies = [corral(stack, pod)]
        for name in filter(None, options.peers.split(",")):
            proxy = makers[name](stack, pod)
            if proxy is None or not wait_for(proxy):
                print(f"{name}: not installed or not answering, left out")
            else:
                proxies.append(proxy)
        wait_for(proxies[0])
        samples = {proxy.name: {"small": [], "large": [], "chunk": [], "rate": [], "errors": 0, "idle": proxy.memory()} for proxy in proxies}
        for _ in range(options.rounds):  # in turns, so that a busy moment of the machine meets all alike
            for proxy in proxies:
                mine = samples[proxy.name]
                for kind, text, connections, per in (
                    ("small", body(1000), 16, 1),
                    ("large", body(200_000), 8, 1),
                    ("chunk", body(1000, stream=True), 64, CHUNKS + 1),
                ):
                    micros, rate, errors = cost(proxy, text, connections, options.seconds, per)
                    mine[kind].append(micros)
                    mine["errors"] += errors
                    if kind == "small":
                        mine["rate"].append(rate)
        half = max(50.0, min(statistics.median(samples["corral"]["rate"]) / 2, 1500.0))
        base = asyncio.run(first_bytes(direct, half, options.seconds))
        print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, median of {options.rounds} rounds of {options.seconds} s;", end=" ")
        print(f"first bytes at {half:.0f} requests/s, direct p50 {base[0]:.2f} ms, p99 {base[1]:.2f} ms\n")
        print("| proxy | CPU us / 1 KB request | / 200 KB request | / chunk | added p50 ms | added p99 ms | RSS MB | errors |")
        print("|---|---|---|---|---|---|---|---|")
        for proxy in proxies:
            mine = samples[proxy.name]
            p50, p99 = asyncio.run(first_bytes(proxy, half, options.seconds))
            row = {kind: statistics.median(mine[kind]) for kind in ("small", "large", "chunk")}
            row |= {"p50": p50 - base[0], "p99": p99 - base[1], "rss": mine["idle"] / 1e6, "errors": mine["errors"]}
            results[proxy.name] = row
            print(
                f"| {proxy.name} | {row['small']:.0f} | {row['large']:.0f} | {row['chunk']:.1f} | {row['p50']:.2f} | {row['p99']:.2f} "
                f"| {row['rss']:.0f} | {row['errors']} |"
            )
        if options.streams:
            slow = start(stack, [sys.executable, str(HERE / "mock_upstream.py"), "--chunks", "100", "--every", "0.1"], others())
            gateway = corral(stack, int(slow.stdout.readline()))
            before, first, last, broken = asyncio.run(open_streams(gateway, options.streams, options.stream_seconds))
            each = (first - before) / options.streams / 1000
            results["streams"] = {"before": before, "first": first, "last": last, "broken": broken, "each": each}
            print(
                f"\n{options.streams} streams for {options.stream_seconds} s: RSS {before / 1e6:.0f} -> {first / 1e6:.0f} -> {last / 1e6:.0f} MB,",
                end=" ",
            )
            print(f"{each:.1f} KB a stream, {broken} broken")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
