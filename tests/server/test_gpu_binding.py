"""A model that was bound to GPUs, on a server without a GPU backend; and which devices a backend would be shown."""

import os

import pytest
from tests.server.harness import Server
from tests.support.gguf_files import sentence_model

from corral_server.engine.process import NO_GPU, show


def test_without_a_gpu_backend_it_runs_on_the_cpu_and_says_so(tmp_path):
    with Server(sentence_model(layers=4).as_uri(), tmp_path) as server:
        server.until("Sleeping")
        answer = server.wake(devices=["GPU-1", "GPU-2"], split=[3.0, 2.0], deviceKind="gpu")
        assert answer.status_code == 202
        status = server.until("Loaded", "Failed")
        assert status["devices"] == ["GPU-1", "GPU-2"]
        assert status["model"]["warning"] == NO_GPU
        said = server.openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "Who?"}], max_tokens=16, temperature=0)
        assert said.choices[0].message.content.strip() == "I am alpaca."
        assert NO_GPU in server.log()


@pytest.mark.parametrize(
    ("devices", "on_host", "container", "shown"),
    [
        (["host"], True, None, ""),
        (["GPU-b", "GPU-a"], False, None, "GPU-b,GPU-a"),
        (["GPU-b", "GPU-a"], False, "GPU-a,GPU-b", "GPU-b,GPU-a"),
        (["1"], False, None, "1"),  # a process of the machine, which sees all of them
        (["1"], False, "1", None),  # a container that sees one, as its number 0
    ],
)
def test_the_devices_that_a_backend_is_shown(monkeypatch, devices, on_host, container, shown):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    if container is not None:
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", container)
    show(devices, on_host=on_host)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == shown
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
