"""Guard: who may ask the dashboard, and what its answers may do in a browser.

Needs   a WSGI application; on which host it is served; a token, where one is wanted.
Yields  Guard, a WSGI application around it.

Host    A page anywhere may name itself after a loopback address (DNS rebinding), and its scripts
        may then read what a browser gets from there. On loopback only requests to a loopback name
        are answered.
Token   Compared in constant time. Given once in the address (`?token=`), kept in a cookie that no
        script reads, and taken out of the address.
Answers carry a Content-Security-Policy that lets no request leave this server, and are compressed
        for whoever takes that.
"""

from __future__ import annotations

import gzip
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

Environ = dict[str, Any]
Start = Callable[..., Any]
Application = Callable[[Environ, Start], Iterable[bytes]]

_COMPRESSED = ("text/", "application/json", "application/javascript", "image/svg+xml")
_SMALLEST = 2048
_KEPT_COMPRESSED = 16
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_METHODS = ("GET", "HEAD", "POST")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own.

    Example:
        >>> [is_loopback(h) for h in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "example.org")]
        [True, True, True, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a Host header, without its port; "" where it is none.

    Example:
        >>> [host_name(h) for h in ("localhost:8050", "[::1]:8050", "127.0.0.1", "a@b:c")]
        ['localhost', '::1', '127.0.0.1', '']
    """
    found = _HOST.fullmatch(header)
    return found["name"].strip("[]") if found else ""


def _query(environ: Environ) -> dict[str, str]:
    """What the address says; nothing where it says more than any of ours would."""
    try:
        return dict(parse_qsl(environ.get("QUERY_STRING", ""), max_num_fields=64))
    except ValueError:
        return {}


class Guard:
    """The application, guarded.

    Args:
        app: what to guard.
        host: the address that is listened on.
        token: what a request must show; "" for none.
        scripts: sources of the Content-Security-Policy for our own inline scripts, quoted hashes.
        cookie: name of the cookie that keeps the token.
    """

    def __init__(
        self, app: Application, *, host: str, token: str = "", scripts: Sequence[str] = (),
        cookie: str = "workbench_dashboard",
    ) -> None:  # fmt: skip
        self._app = app
        self._own_names_only = is_loopback(host)
        self._token = token.encode()
        self._cookie = cookie
        self._compressed: dict[str, bytes] = {}
        self._policy = (
            f"default-src 'none'; script-src 'self' {' '.join(scripts)}; connect-src 'self'; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
        )

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in _METHODS:
            return self._refuse(start, "405 Method Not Allowed", "The dashboard only reads.")
        name = host_name(environ.get("HTTP_HOST", ""))
        if self._own_names_only and not is_loopback(name):
            return self._refuse(
                start, "403 Forbidden",
                "This dashboard answers on this machine only, as localhost or 127.0.0.1.",
            )  # fmt: skip
        if self._token:
            said = _query(environ)
            if self._is_token(said.get("token", "")):
                return self._let_in(environ, start, said)
            if not self._is_token(self._from_cookie(environ)):
                return self._refuse(
                    start, "401 Unauthorized",
                    "Open the address that was printed when the dashboard began: it ends in "
                    "?token=...",
                )  # fmt: skip
        return self._answer(environ, start)

    def _is_token(self, said: str) -> bool:
        return hmac.compare_digest(said.encode("utf-8", "replace"), self._token)

    def _from_cookie(self, environ: Environ) -> str:
        try:
            jar = SimpleCookie(environ.get("HTTP_COOKIE", ""))
        except CookieError:
            return ""
        return jar[self._cookie].value if self._cookie in jar else ""

    def _let_in(self, environ: Environ, start: Start, said: dict[str, str]) -> Iterable[bytes]:
        """To the same address without the token, which the cookie holds from now on."""
        rest = urlencode({n: v for n, v in said.items() if n != "token"})
        secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
        token = self._token.decode()
        headers = [
            # Relative: whatever stands before it may have put a prefix there.
            ("Location", f"?{rest}" if rest else "./"),
            ("Set-Cookie", f"{self._cookie}={token}; HttpOnly; SameSite=Lax; Path=/{secure}"),
            ("Content-Length", "0"),
        ]
        start("303 See Other", headers + self._headers())
        return [b""]

    def _refuse(self, start: Start, status: str, words: str) -> Iterable[bytes]:
        body = f"{words}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
        ]
        start(status, headers + self._headers())
        return [body]

    def _headers(self) -> list[tuple[str, str]]:
        return [
            ("Content-Security-Policy", self._policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ]

    def _answer(self, environ: Environ, start: Start) -> Iterable[bytes]:
        told: list[Any] = []

        def begin(status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[..., Any]:
            told[:] = [status, headers]
            return lambda data: None

        parts = self._app(environ, begin)
        try:
            body = b"".join(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        status, headers = told
        kept = [(n, v) for n, v in headers if n.lower() != "content-length"]
        kind = next((v for n, v in kept if n.lower() == "content-type"), "")
        coded = any(n.lower() == "content-encoding" for n, _ in kept)
        takes = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "")
        if takes and not coded and len(body) >= _SMALLEST and kind.startswith(_COMPRESSED):
            body = self._compress(environ, status, body)
            kept += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
        start(status, [*kept, ("Content-Length", str(len(body))), *self._headers()])
        return [body]

    def _compress(self, environ: Environ, status: str, body: bytes) -> bytes:
        """Compressed; of the libraries' files, which never change, once."""
        path = environ.get("PATH_INFO", "")
        never_changes = "/_dash-component-suites/" in path and status.startswith("200")
        if never_changes and path in self._compressed:
            return self._compressed[path]
        small = gzip.compress(body, compresslevel=1, mtime=0)
        if never_changes and len(self._compressed) < _KEPT_COMPRESSED:
            self._compressed[path] = small
        return small
