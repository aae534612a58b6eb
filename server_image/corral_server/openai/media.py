"""The images and audio of a request: taken out of its messages, a mark put in their place. Pure; decoding happens elsewhere."""

import re
from collections.abc import Mapping
from typing import Any

from corral_server.decoding import MediaItem
from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid

_DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_MOST = 64
PLAIN_MARK = "<__media__>"
"""How llama.cpp's documentation writes the place of an image in a prompt."""
IMAGES = ("image_url", "input_image")
AUDIO = ("input_audio",)
OTHERS = ("input_video", "video_url", "audio_url")


class MediaParts:
    """What the messages of one request show, in order. `able` is what the loaded model says of its projector."""

    def __init__(self, able: Mapping[str, Any]) -> None:
        self._able = able
        self.items: list[MediaItem] = []

    @property
    def mark(self) -> str:
        return str(self._able.get("marker", ""))

    def part(self, part: Mapping[str, Any], kind: str, where: str) -> str:
        """The mark of an image or a piece of audio, which is noted."""
        if not self._able:
            raise ApiError(400, "unsupported_content", f"{where} is of type {kind}; this model takes text only", where)
        if kind in OTHERS:
            raise ApiError(400, "unsupported_content", f"{where} is of type {kind}; images come as image_url, audio as input_audio", where)
        if kind in IMAGES:
            self._check("vision", "images", where)
            return self._add("image", _image_data(part, where), where)
        self._check("audio", "audio", where)
        return self._add("audio", _audio_data(part, where), where)

    def any(self, data: Any, where: str) -> None:
        """A file that says by itself what it is."""
        if not self._able:
            raise invalid("prompt", "prompt holds multimodal_data, but this model takes text only")
        if not isinstance(data, str):
            raise invalid(where, f"{where} is {fields.shown(data)}; it has to be an image or audio in base64")
        self._add("any", data, where)

    def _check(self, side: str, what: str, where: str) -> None:
        if not self._able.get(side):
            raise ApiError(400, "unsupported_content", f"{where} holds {what}; this model's projector takes none", where)

    def _add(self, kind: str, data: str, where: str) -> str:
        if len(self.items) >= _MOST:
            raise invalid(where, f"{where} is one image or piece of audio too many: a request may have {_MOST}")
        self.items.append(MediaItem(kind, data, where))
        return self.mark


def _image_data(part: Mapping[str, Any], where: str) -> str:
    if part.get("file_id") is not None:
        raise ApiError(400, "unsupported_content", f"{where} names a file_id; images have to come as a data URL", where)
    found = part.get("image_url")
    url = found.get("url") if isinstance(found, dict) else found
    if not isinstance(url, str) or not url:
        raise invalid(where, f"{where} is {fields.shown(part)}; its image_url has to be a data URL in base64")
    return _base64_of(url, "an image", where)


def _audio_data(part: Mapping[str, Any], where: str) -> str:
    found = part.get("input_audio")
    held = found if isinstance(found, dict) else {}
    data = held.get("data", held.get("url"))
    if not isinstance(data, str) or not data:
        raise invalid(where, f"{where} is {fields.shown(part)}; its input_audio has to hold data in base64")
    if not isinstance(held.get("format", ""), str):
        raise invalid(f"{where}.input_audio.format", f"{where}.input_audio.format is {fields.shown(held['format'])}; it has to be wav or mp3")
    return _base64_of(data, "audio", where)


def _base64_of(url: str, what: str, where: str) -> str:
    if url.startswith("data:"):
        found = _DATA.match(url)
        if not found:
            raise invalid(where, f"{where} is {fields.shown(url)}; {what} has to come as a data URL in base64")
        return url[found.end() :]
    if "://" in url[:32]:
        message = f"{where} names an address; this server fetches nothing for its clients: send {what} as a data URL in base64"
        raise ApiError(400, "unsupported_content", message, where)
    return url
