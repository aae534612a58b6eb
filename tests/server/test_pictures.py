"""The formats that images come in: the same pixels whatever the format, and mutated files, each of which is an image or an error that names it.

`CORRAL_FUZZ_FILES=5000` sends that many of them; `CORRAL_FUZZ_SEED` others.
"""

import base64
import io
import os
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from tests.server.harness import Server
from tests.support.projectors import Eyes, png, projector
from tests.support.random_models import Shape, random_model

pytestmark = [pytest.mark.model, pytest.mark.timeout(3600)]
FILES = int(os.environ.get("CORRAL_FUZZ_FILES", "120"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    eyes = projector(Eyes(audio=""))
    with Server(random_model(Shape("llama")).as_uri(), tmp_path_factory.mktemp("pictures"), projector=eyes.as_uri()) as started:
        started.load()
        yield started


def picture(seed: int = 1, *, veiled: bool = False) -> Image.Image:
    """Coloured blocks; veiled: half of them can be seen through, some of those altogether."""
    found = Image.open(io.BytesIO(png(seed)))
    if veiled:
        found.putalpha(Image.linear_gradient("L").resize(found.size).point(lambda value: max(0, value - 100)))
    return found


def saved(image: Image.Image, form: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return buffer.getvalue()


def lossless(image: Image.Image, **how: Any) -> bytes:
    return saved(image, "WEBP", lossless=True, exact=True, **how)


def asked(server: Server, file: bytes, **more: Any) -> Any:
    url = f"data:image/webp;base64,{base64.b64encode(file).decode()}"
    parts = [{"type": "text", "text": "look "}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 2, "temperature": 0, "cache_prompt": False, **more}
    return server.http.post("/v1/chat/completions", json=body)


def figures(server: Server, file: bytes) -> list[float]:
    answer = asked(server, file, logprobs=True)
    assert answer.status_code == 200, answer.text
    return [entry["logprob"] for entry in answer.json()["choices"][0]["logprobs"]["content"]]


@pytest.mark.parametrize(
    ("file", "same"),
    [
        pytest.param(lossless(picture()), png(1), id="lossless"),
        pytest.param(lossless(picture(veiled=True)), saved(picture(veiled=True), "PNG"), id="transparent"),
        pytest.param(lossless(picture(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"), png(1), id="turned"),
        pytest.param(lossless(picture(), save_all=True, append_images=[picture(2)], duration=100), png(1), id="animated"),
    ],
)
def test_a_webp_shows_the_pixels_that_a_png_shows(server: Server, file: bytes, same: bytes) -> None:
    assert file[8:12] == b"WEBP"
    assert figures(server, file) == pytest.approx(figures(server, same), abs=1e-3)


def test_a_lossy_webp_is_another_picture_of_the_same_size(server: Server) -> None:
    lossy, whole = asked(server, saved(picture(), "WEBP", quality=20)).json(), asked(server, png(1)).json()
    assert lossy["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def sized(width: int, height: int) -> bytes:
    """The beginning of a WebP that says it is so large."""
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + lossless(picture())[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("file", "says"),
    [
        pytest.param(lossless(picture())[:-20], "damaged image", id="cut off"),
        pytest.param(lossless(picture())[:28], "damaged image", id="head only"),
        pytest.param(b"RIFF\x10\0\0\0WEBPwhat" + bytes(20), "damaged image", id="no chunk of a picture"),
        pytest.param(lossless(Image.new("RGB", (900, 3))), "times the other", id="slender"),
        pytest.param(lossless(Image.new("RGB", (6000, 4200))), "18000000 pixels", id="too many pixels"),
        pytest.param(sized(16384, 16384), "18000000 pixels", id="said to be far too large"),
        pytest.param(b"RIFX\x10\0\0\0WEBP" + bytes(20), "JPEG, PNG, WebP, GIF or BMP", id="nothing known"),
    ],
)
def test_a_wrong_webp_is_named(server: Server, file: bytes, says: str) -> None:
    answer = asked(server, file)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[0].content[1]")
    assert says in error["message"]


def test_the_largest_webp_is_read(server: Server) -> None:
    assert asked(server, lossless(Image.new("RGB", (4242, 4242), (9, 9, 9)), method=0)).status_code == 200


def test_pictures_that_take_more_room_to_decode_may_have_fewer_pixels(server: Server) -> None:
    assert asked(server, saved(Image.new("L", (5000, 5000)), "PNG")).status_code == 200
    answer = asked(server, saved(Image.new("I;16", (5000, 5000)), "PNG"))
    assert (answer.status_code, "18000000 are allowed" in answer.json()["error"]["message"]) == (400, True)


def mutated(dice: random.Random, file: bytes) -> bytes:
    found = bytearray(file)
    for _ in range(dice.choice((1, 1, 2, 8, 40))):
        # Heads decide the most.
        at = dice.randrange(min(len(found), 64) if dice.random() < 0.5 else len(found))
        found[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
    if dice.random() < 0.2:
        del found[dice.randrange(len(found)) :]
    return bytes(found)


def test_no_file_brings_it_down(server: Server) -> None:
    dice = random.Random(int(os.environ.get("CORRAL_FUZZ_SEED", "1")))
    plain, veiled = picture(), picture(veiled=True)
    seeds = [
        *(saved(plain, form) for form in ("PNG", "JPEG", "GIF", "BMP")), lossless(plain), lossless(veiled),
        saved(plain, "WEBP", quality=60), saved(veiled, "WEBP", quality=60),
        saved(plain, "WEBP", save_all=True, append_images=[picture(2)], duration=50),
    ]  # fmt: skip
    engine, seen = server.engine_pid(), {200: 0, 400: 0}
    for number in range(FILES):
        file = mutated(dice, seeds[number % len(seeds)])
        answer = asked(server, file)
        assert answer.status_code in seen, f"file {number}, {file.hex()}: {answer.text[:600]}"
        seen[answer.status_code] += 1
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] == "messages[0].content[1]"
            assert "ended the process" not in answer.text, f"file {number}, {file.hex()}"
    assert min(seen.values())
    assert server.engine_pid() == engine
