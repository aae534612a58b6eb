"""Files that a message brings along: text is taken in, anything else is refused. Pure."""

import base64
import binascii
import re
from typing import Any

from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid

_DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<parameters>(?:;[\w.+-]+=[^;,]*)*)(?P<base64>;base64)?,", re.ASCII)
_TEXTUAL = ("application/json", "application/xml", "application/yaml", "application/x-yaml", "application/javascript", "application/toml")


def attached_text(file: Any, where: str) -> str:
    """The text of an attached file, after its name."""
    if not isinstance(file, dict):
        raise invalid(where, f"{where} is {fields.shown(file)}; it has to hold a file with file_data")
    data, name = file.get("file_data"), file.get("filename")
    if not isinstance(data, str):
        for reference in ("file_id", "file_url"):
            if file.get(reference) is not None:
                raise ApiError(400, "unsupported_content", f"{where} names a {reference}; files have to come in file_data", where)
        raise invalid(where, f"{where} is {fields.shown(file)}; it has to hold file_data")
    text = text_of_data(data, where)
    return f"{name}:\n{text}" if isinstance(name, str) and name else text


def text_of_data(data: str, where: str) -> str:
    """The text in a data URL."""
    found = _DATA.match(data)
    kind = (found["type"] or "text/plain") if found else "application/octet-stream"
    if not found or not (kind.startswith("text/") or kind in _TEXTUAL):
        raise ApiError(400, "unsupported_content", f"{where} is a file of type {kind}; this model takes text only", where)
    rest = data[found.end() :]
    try:
        return base64.b64decode(rest, validate=True).decode() if found["base64"] else _unquoted(rest)
    except (binascii.Error, UnicodeDecodeError):
        raise invalid(where, f"{where} holds data that is not UTF-8 text in base64") from None


def _unquoted(text: str) -> str:
    from urllib.parse import unquote  # noqa: PLC0415  hardly ever needed

    return unquote(text, errors="strict")
