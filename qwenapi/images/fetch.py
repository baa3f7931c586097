"""Fetch a picture for a caller: only from hosts a setting names, never from inside the network.

What is checked is the address that is connected to, after its name was resolved and for every
redirect again; proxies of the environment are not used. Bytes, time and redirects are bounded.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import gevent

from qwenapi.errors import BadRequest
from qwenapi.images.source import MAX_BYTES, check_media_type

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE_BYTES = 64 * 1024
# Addresses of IPv4 hosts inside IPv6 ones, by a translator of the network.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What has been given out of IPv6, and a part of it that is for examples.
_GLOBAL, _DOCUMENTATION = ipaddress.ip_network("2000::/3"), ipaddress.ip_network("3fff::/20")
_AGENT = "qwenapi"


class PrivateAddress(Exception):
    """A host is not one of the public internet."""


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None:
            return False
        if ip not in _GLOBAL or ip in _DOCUMENTATION:
            return False
    return ip.is_global and not ip.is_multicast


class Fetcher:
    """Fetches what callers name, from `domains` only."""

    def __init__(
        self,
        domains: Sequence[str],
        seconds: float,
        may_connect: Callable[[str], bool] = is_public,
    ) -> None:
        self._domains = tuple(domain.lower() for domain in domains)
        self._seconds, self._may_connect = seconds, may_connect

    def fetch(self, url: str) -> bytes:
        """Return the bytes at a URL; raise BadRequest saying why they cannot be had."""
        deadline = time.monotonic() + self._seconds
        try:
            with gevent.Timeout(self._seconds, TimeoutError):
                for _ in range(MAX_REDIRECTS + 1):
                    found = self._get(self._checked(url), deadline)
                    if isinstance(found, bytes):
                        return found
                    url = urljoin(url, found)
        except TimeoutError as error:
            raise BadRequest(
                f"The picture did not come within {self._seconds:g} seconds."
            ) from error
        except PrivateAddress as error:
            raise BadRequest(
                "The picture's host has no public address, and none else is connected to."
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BadRequest("The picture's host could not be read from.") from error
        raise BadRequest(f"The picture's address redirects more than {MAX_REDIRECTS} times.")

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            host, _ = (parts.hostname or "").lower(), parts.port
        except ValueError as error:
            raise BadRequest("The picture's address is not valid.") from error
        if parts.scheme not in ("http", "https") or not host or not url.isascii():
            raise BadRequest("A picture is a data URL, or one of http or https.")
        if parts.username is not None or any(ord(letter) <= 32 for letter in url):
            raise BadRequest("The picture's address is not valid.")
        if not any(_is_of(host, domain) for domain in self._domains):
            raise BadRequest(
                f"Pictures are not fetched from '{host[:100]}' here"
                + (
                    ": send them as data URLs."
                    if not self._domains
                    else ", only from hosts that this server allows; or send a data URL."
                )
            )
        return parts

    def _get(self, parts: SplitResult, deadline: float) -> bytes | str:
        """Return what is there, or where it is instead."""
        host, port = parts.hostname or "", parts.port
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, context=context)
        else:
            connection = http.client.HTTPConnection(host, port)
        connection.timeout = _left(deadline)
        # What http.client itself connects by; the name stays the one TLS is checked for.
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        try:
            address = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": _AGENT, "Accept": "image/*", "Accept-Encoding": "identity"}
            connection.request("GET", address, headers=headers)
            return _read(connection.getresponse(), deadline)
        finally:
            connection.close()

    def _connect(self, address: tuple[str, int], timeout: Any, *others: Any) -> socket.socket:
        """Connect to a host's first address, if all it has may be connected to."""
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        if not all(self._may_connect(str(place[4][0])) for place in found):
            raise PrivateAddress
        family, kind, protocol, _, first = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            sock.connect(first)
        except BaseException:
            sock.close()
            raise
        return sock


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes | str:
    if response.status in _REDIRECTS and (location := response.getheader("Location")):
        return location
    if response.status != 200:
        raise BadRequest(f"The picture's host answered with status {response.status}.")
    check_media_type((response.getheader("Content-Type") or "").partition(";")[0].strip())
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise BadRequest("The picture's host answered with an encoding that was not asked for.")
    if (response.length or 0) > MAX_BYTES:
        raise BadRequest(f"The picture has more than {MAX_BYTES} bytes.")
    data = bytearray()
    while piece := response.read1(_PIECE_BYTES):
        data += piece
        if len(data) > MAX_BYTES:
            raise BadRequest(f"The picture has more than {MAX_BYTES} bytes.")
        _left(deadline)
    return bytes(data)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _is_of(host: str, domain: str) -> bool:
    if domain.startswith("*."):
        return host.endswith(domain[1:])
    return host == domain
