"""The dashboard answers those who may ask, by a name of this machine, and nobody else."""

from __future__ import annotations

import gzip
import io

import pytest

from workbench.app.dashboard.guard import Guard

TOKEN = "a-long-token-of-our-own"
BODY = b"record " * 1000


def page(environ, start):
    start("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(BODY)))])
    return [BODY]


class Answer:
    def __init__(self, app, path="/", host="localhost:8050", method="GET", **headers):
        path, _, query = path.partition("?")
        environ = {
            "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query,
            "HTTP_HOST": host, "wsgi.input": io.BytesIO(), "wsgi.url_scheme": "http",
            **{f"HTTP_{n.upper()}": v for n, v in headers.items()},
        }  # fmt: skip
        if host is None:
            del environ["HTTP_HOST"]

        def start(status, headers, _=None):
            self.status = int(status.split()[0])
            self.headers = {n.lower(): v for n, v in headers}

        self.body = b"".join(app(environ, start))


def test_on_loopback_no_token_is_asked_for():
    answer = Answer(Guard(page, host="127.0.0.1"))
    assert answer.status == 200
    assert answer.body == BODY


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8050", "[::1]:8050"])
def test_a_name_of_this_machine_is_answered(host):
    assert Answer(Guard(page, host="127.0.0.1"), host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8050", "", None,
     "evil.example:8050", "10.0.0.1", "[::2]:80", "localhost:80@evil.example", "2130706433"],
)  # fmt: skip
def test_on_loopback_a_foreign_name_is_refused(host):
    answer = Answer(Guard(page, host="127.0.0.1"), host=host)
    assert answer.status == 403
    assert b"record" not in answer.body


def test_without_the_token_nothing_is_answered():
    guard = Guard(page, host="0.0.0.0", token=TOKEN)
    assert Answer(guard).status == 401
    assert Answer(guard, "/?token=").status == 401
    assert Answer(guard, f"/?token={TOKEN}x").status == 401
    assert Answer(guard, f"/?token={TOKEN[:-1]}").status == 401
    assert Answer(guard, "/?token=%C3%A9%00").status == 401
    assert Answer(guard, "/_dash-layout").status == 401
    assert Answer(guard, cookie="workbench_dashboard=wrong").status == 401
    assert Answer(guard, cookie=";;=\x00").status == 401
    assert b"record" not in Answer(guard).body


def test_the_token_is_taken_once_and_kept_where_no_script_reads_it():
    guard = Guard(page, host="0.0.0.0", token=TOKEN)
    first = Answer(guard, f"/?page=health&token={TOKEN}")
    assert first.status == 303
    assert first.headers["location"] == "?page=health"
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    kept = cookie.partition(";")[0]
    second = Answer(guard, "/", host="training-box:8050", cookie=kept)
    assert second.status == 200
    assert TOKEN.encode() not in second.body


def test_a_token_counts_on_loopback_too():
    assert Answer(Guard(page, host="127.0.0.1", token=TOKEN)).status == 401


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_dashboard_only_reads(method):
    assert Answer(Guard(page, host="127.0.0.1"), method=method).status == 405


def test_no_answer_lets_a_page_ask_anybody_else():
    guard = Guard(page, host="127.0.0.1", scripts=["'sha256-x'"])
    for answer in (Answer(guard), Answer(guard, host="evil.example")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self' 'sha256-x'" in policy
        assert "connect-src 'self'" in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_answer_is_compressed_for_whoever_takes_that():
    answer = Answer(Guard(page, host="127.0.0.1"), accept_encoding="gzip, br")
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) == len(answer.body) < len(BODY) / 10
    assert gzip.decompress(answer.body) == BODY


def test_an_address_of_a_thousand_names_is_refused_like_any_without_the_token():
    guard = Guard(page, host="0.0.0.0", token=TOKEN)
    assert Answer(guard, "/?" + "a=1&" * 1000).status == 401
    assert Answer(guard, "/?" + "a=1&" * 1000 + f"token={TOKEN}").status == 401
