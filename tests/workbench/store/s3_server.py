"""A local server that speaks S3, for tests of stores in buckets."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class S3:
    """The server, and the conditional writes that it was asked for."""

    def __init__(self) -> None:
        from moto.moto_server.threaded_moto_server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.puts: list[tuple[str, bool]] = []
        self.buckets = 0

    def bucket(self) -> str:
        self.buckets += 1
        name = f"bucket-{self.buckets}"
        HTTP.open(urllib.request.Request(f"{self.url}/{name}", method="PUT")).read()
        return name

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def serving() -> Iterator[S3]:
    """The server, for as long as the context lasts."""
    import moto.s3.responses

    server = S3()
    put, one_at_a_time = moto.s3.responses.S3Response.put_object, threading.Lock()

    def atomic(self):
        # moto looks at the condition and then writes, and two of its threads may both pass the
        # look; S3 promises that one of them does.
        with one_at_a_time:
            conditional = "If-Match" in self.headers or self.headers.get("If-None-Match") == "*"
            server.puts.append((self.parse_key_name(), conditional))
            return put(self)

    moto.s3.responses.S3Response.put_object = atomic
    yield server
    moto.s3.responses.S3Response.put_object = put
    server.stop()
