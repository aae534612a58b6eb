"""The process that decodes the images and audio of one request: files that strangers made are read where a crash harms nobody else.

Forked from the zygote for each request that brings any; its memory and its time are limited. What it decodes it writes into memory that the
supervisor gave it, for the engine to read.
"""

import base64
import binascii
import ctypes
import io
import os
import resource
import socket
import warnings
from typing import Any

import numpy as np

from corral_server.channel import BlockingChannel

_ROOM = 1 << 30
_SECONDS = 20
_MOST_BYTES = 96 << 20
"""All pixels and samples of one request: the footprint counts on it."""
_MOST_PIXELS = 25_000_000
_MOST_WIDE_PIXELS = 18_000_000
"""Of files that take more room while they are decoded, 15 or 16 bytes a pixel at the peak: WebP, and 16 bits a channel. What `overhead.SHOWN` has
room for.
"""
_LOUDEST = 1000.0
"""Full scale is 1; what no recording has would come out of the projector as no numbers."""
_MOST_SLENDER = 100
"""Longer than so many times its width, no projector makes anything of a picture."""
_ROWS = 64
"""Of a WebP's pixels, copied at a time."""


class UnreadableError(Exception):
    """A part that cannot be decoded; the text says why."""


def main(sock: socket.socket) -> None:
    channel = BlockingChannel(sock)
    order = channel.receive(None)[0]
    from corral_server.engine.library import multimodal  # noqa: PLC0415  its own pictures are read as llama.cpp reads them

    library = multimodal()._libmtmd  # noqa: SLF001  stb_image has no bindings
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, used + _ROOM))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    target = os.open(order["path"], os.O_RDWR | os.O_CLOEXEC)
    found: list[dict[str, Any]] = []
    at = 0
    for index, part in enumerate(order["parts"]):
        try:
            described, data = _decoded(part, library, order["sampleRate"])
        except UnreadableError as error:
            channel.send({"index": index, "error": str(error)})
            return
        except MemoryError:
            channel.send({"index": index, "error": "takes too much memory to decode"})
            return
        if at + len(data) > _MOST_BYTES:
            channel.send({"index": index, "error": f"is too much: the images and audio of a request may come to {_MOST_BYTES >> 20} MiB decoded"})
            return
        _write(target, data, at)
        found.append({**described, "at": at, "bytes": len(data)})
        at += len(data)
    channel.send({"media": found})


def _write(target: int, data: memoryview, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], at + done)


def _decoded(part: dict[str, str], library: Any, rate: int) -> tuple[dict[str, Any], memoryview]:
    try:
        raw = base64.b64decode("".join(part["data"].split()), validate=True)
    except (binascii.Error, ValueError):
        raise UnreadableError("is not base64") from None
    audible = raw[:4] == b"fLaC" or raw[:3] == b"ID3" or (raw[:4] == b"RIFF" and raw[8:12] == b"WAVE") or _is_mp3(raw)
    if part["kind"] not in ("any", "audio" if audible else "image"):
        raise UnreadableError("holds no audio that can be read: WAV, MP3 or FLAC" if part["kind"] == "audio" else "holds audio, not an image")
    return _sound(raw, rate) if audible else _picture(raw, library)


def _is_mp3(raw: bytes) -> bool:
    return len(raw) > 2 and raw[0] == 0xFF and raw[1] & 0xE0 == 0xE0 and raw[1:2] != b"\xff" and raw[:3] != b"\xff\xd8\xff"


def _picture(raw: bytes, library: Any) -> tuple[dict[str, Any], memoryview]:
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return _webp(raw)
    width, height, channels = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    sizes = ctypes.byref(width), ctypes.byref(height), ctypes.byref(channels)
    if not library.stbi_info_from_memory(raw, len(raw), *sizes):
        raise UnreadableError("is no image that can be read: JPEG, PNG, WebP, GIF or BMP")
    x, y = width.value, height.value
    _check_size(x, y, _MOST_WIDE_PIXELS if library.stbi_is_16_bit_from_memory(raw, len(raw)) else _MOST_PIXELS)
    load = library.stbi_load_from_memory
    load.restype = ctypes.c_void_p
    pixels = load(raw, len(raw), *sizes, 3)
    if not pixels or (width.value, height.value) != (x, y):
        raise UnreadableError("is a damaged image")
    # Freed by the exit.
    data = memoryview((ctypes.c_uint8 * (x * y * 3)).from_address(pixels)).cast("B")
    return {"kind": "image", "width": x, "height": y}, data


def _check_size(x: int, y: int, most: int) -> None:
    if x < 1 or y < 1 or x * y > most:
        raise UnreadableError(f"has {x} x {y} pixels; {most} are allowed")
    if max(x, y) > _MOST_SLENDER * min(x, y):
        raise UnreadableError(f"has {x} x {y} pixels; a side may be at most {_MOST_SLENDER} times the other")


def _webp(raw: bytes) -> tuple[dict[str, Any], memoryview]:
    """As stb_image has it of other formats: the first frame, as it is stored (no turning by EXIF), transparent pixels in the colour they have."""
    from PIL import Image, WebPImagePlugin  # noqa: PLC0415  only requests with a WebP come here

    # libwebp takes memory for all pixels as soon as the file is opened.
    Image.MAX_IMAGE_PIXELS = _MOST_WIDE_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        with Image.open(io.BytesIO(raw), formats=[WebPImagePlugin.WebPImageFile.format]) as image:
            x, y = image.size
            _check_size(x, y, _MOST_WIDE_PIXELS)
            image.load()
            data = bytearray(x * y * 3)
            # Not all rows at once: that would be two more copies.
            for top in range(0, y, _ROWS):
                rows = image.crop((0, top, x, min(top + _ROWS, y))).tobytes("raw", "RGB")
                data[top * x * 3 : top * x * 3 + len(rows)] = rows
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableError(f"has more than {_MOST_WIDE_PIXELS} pixels") from None
    except (OSError, EOFError, SyntaxError, ValueError):
        raise UnreadableError("is a damaged image") from None
    return {"kind": "image", "width": x, "height": y}, memoryview(data)


def _sound(raw: bytes, rate: int) -> tuple[dict[str, Any], memoryview]:
    if not rate:
        raise UnreadableError("holds audio; this model takes none")
    import miniaudio  # noqa: PLC0415  only requests with audio come here

    try:
        found = miniaudio.decode(raw, output_format=miniaudio.SampleFormat.FLOAT32, nchannels=1, sample_rate=rate)
    except miniaudio.MiniaudioError as error:
        raise UnreadableError(f"is damaged audio: {error}") from None
    count = len(found.samples)
    if count < rate // 100:
        raise UnreadableError(f"is audio of {count} samples at {rate} Hz; it has to last a hundredth of a second")
    if not np.all(np.abs(np.frombuffer(found.samples, dtype=np.float32)) <= _LOUDEST):
        raise UnreadableError("holds samples that are no sound: infinite, or no numbers")
    return {"kind": "audio"}, memoryview(found.samples).cast("B")
