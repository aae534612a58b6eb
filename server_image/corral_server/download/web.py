"""HTTP reads for downloads: resumable, and never to an address that the cluster did not mean to offer.

The peer's address is checked after the connection is made and before a byte is sent, so a name that resolves twice differently gains nothing.
"""

import base64
import http.client
import ipaddress
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from corral_server.reasons import (
    SOURCE_NOT_FOUND,
    SOURCE_REFUSED,
    SOURCE_UNAUTHORIZED,
    SOURCE_UNREACHABLE,
    Failure,
)

TIMEOUT = 30.0


def refused_address(address: str) -> bool:
    """Loopback, link-local (cloud metadata lives there), unspecified and multicast addresses are never a model's source."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast


class _AddressRefusedError(OSError):
    pass


def _check_peer(sock: Any, host: str) -> None:
    address = sock.getpeername()[0]
    if refused_address(address):
        sock.close()
        raise _AddressRefusedError(f"{host} is at {address}, a loopback or link-local address; sources there are refused")


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _check_peer(self.sock, self.host)


class _TLSConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _check_peer(self.sock, self.host)


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Connection, req)


class _TLSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_TLSConnection, req, context=ssl.create_default_context())


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        old_parts, new_parts = urlsplit(req.full_url), urlsplit(newurl)
        if new is not None and (old_parts.scheme, old_parts.netloc) != (new_parts.scheme, new_parts.netloc):
            new.remove_header("Authorization")
        return new


class Web:
    """Opens URLs with the rules of this installation."""

    def __init__(self, *, allow_local: bool) -> None:
        self._opener = urllib.request.OpenerDirector()
        plain: list[Any] = [urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()]
        checked: list[Any] = [_Handler(), _TLSHandler()]
        # Through a proxy the address that counts is the proxy's business.
        proxied = bool(urllib.request.getproxies())
        for handler in [
            urllib.request.ProxyHandler(),
            *(plain if allow_local or proxied else checked),
            _Redirects(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
        ]:
            self._opener.add_handler(handler)

    def open(self, url: str, headers: Mapping[str, str], what: str) -> Any:
        """The response; Failure with the reason when the source does not give one. `what` names the source to the user."""
        request = urllib.request.Request(url, headers={"User-Agent": "corral", **headers})  # noqa: S310  only http(s) handlers are installed
        try:
            return self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                raise _status_failure(error.code, what) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, _AddressRefusedError):
                raise Failure(SOURCE_REFUSED, f"{what}: {error.reason}") from None
            raise Failure(SOURCE_UNREACHABLE, f"{what}: {_plain(error.reason)}") from None
        except _AddressRefusedError as error:
            raise Failure(SOURCE_REFUSED, f"{what}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Failure(SOURCE_UNREACHABLE, f"{what}: {_plain(error)}") from None


def _plain(error: object) -> str:
    if isinstance(error, socket.gaierror):
        return f"its host name cannot be resolved ({error.strerror})"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    return str(error) or type(error).__name__


def _status_failure(status: int, what: str) -> Failure:
    if status in (401, 403):
        return Failure(SOURCE_UNAUTHORIZED, f"{what}: the server answered {status}; check the source's secret")
    if status in (404, 410):
        return Failure(SOURCE_NOT_FOUND, f"{what}: the server answered {status}; there is no such file")
    if status == 416:
        return Failure("RangeNotSatisfiable", what)
    return Failure(SOURCE_UNREACHABLE, f"{what}: the server answered {status}")


def credentials(secret_dir: Path | None) -> dict[str, str]:
    """The Authorization header of the source's secret."""
    if secret_dir is None:
        return {}
    if not secret_dir.is_dir():
        raise Failure(SOURCE_UNAUTHORIZED, f"the secret of the source is not there: {secret_dir} is no folder")

    def read(key: str) -> str:
        file = secret_dir / key
        return file.read_text().strip() if file.is_file() else ""

    if token := read("token"):
        return {"Authorization": f"Bearer {token}"}
    if username := read("username"):
        pair = base64.b64encode(f"{username}:{read('password')}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    raise Failure(SOURCE_UNAUTHORIZED, "the secret of the source has neither `token` nor `username`")
