"""`workbench dashboard` answers, or says in one line why it does not."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.request

import pytest

from workbench.app import cli
from workbench.app.dashboard import server
from workbench.app.dashboard.live_run import LiveRun
from workbench.app.dashboard.panel import changes
from workbench.errors import UsageError


def fails_with(*arguments):
    with pytest.raises(SystemExit) as done:
        cli.main(["dashboard", *map(str, arguments)])
    return done.value.code


def test_a_run_that_is_not_there_is_exit_code_3(tmp_path, capsys):
    assert fails_with(tmp_path / "none") == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(two_arm_run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert fails_with(two_arm_run, "--port", port) == 2
    said = capsys.readouterr().err
    assert f"port {port}" in said
    assert "--port 0" in said
    assert said.count("\n") == 1


def test_without_dash_the_remedy_is_one_line(two_arm_run, capsys, monkeypatch):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    assert fails_with(two_arm_run) == 2
    said = capsys.readouterr().err
    assert "training-dynamics-workbench[dashboard]" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("token", ["short", "with spaces in it, long enough", "a" * 201, "ä" * 20])
def test_a_token_that_is_none_is_refused(two_arm_run, token, capsys):
    assert fails_with(two_arm_run, "--token", token) == 2


@pytest.mark.parametrize("prefix", ["dashboard", "/a/../b//", "/<script>/", "//evil.example/"])
def test_a_prefix_that_is_no_path_is_refused(two_arm_run, prefix):
    with pytest.raises(UsageError, match="--prefix"):
        server.application(LiveRun(two_arm_run), prefix=prefix)


def test_beyond_this_machine_the_command_prints_a_token_and_asks_for_it(two_arm_run, serve):
    place, _, token = serve(two_arm_run, "--host", "0.0.0.0").url.partition("/?token=")
    assert len(token) >= 24
    connection = http.client.HTTPConnection("127.0.0.1", int(place.rpartition(":")[2]), timeout=30)

    def asked(path, **headers):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    assert asked("/_dash-layout")[0] == 401
    status, headers, _ = asked(f"/?token={token}")
    assert status == 303
    cookie = headers["Set-Cookie"].partition(";")[0]
    status, _, layout = asked("/_dash-layout", Cookie=cookie)
    assert status == 200
    assert json.loads(layout)["props"]
    connection.close()


def test_the_page_names_its_language_and_loads_only_from_here(two_arm_run, serve):
    with urllib.request.urlopen(serve(two_arm_run).url) as answer:
        page = answer.read().decode()
        policy = answer.headers["Content-Security-Policy"]
    assert '<html lang="en">' in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert "unsafe-eval" not in policy


def test_nothing_in_the_run_changes_while_it_is_looked_at(two_arm_run, serve):
    def contents():
        files = (p for p in sorted(two_arm_run.rglob("*")) if p.is_file())
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    from workbench.app.dashboard.frame import _panels
    from workbench.app.dashboard.panel import look
    from workbench.app.dashboard.view import PAGES, View

    before = contents()
    live = LiveRun(two_arm_run)
    for page in PAGES:
        moment = live.moment(View(page=page))
        for panel in _panels(moment):
            look(panel, "")
        assert moment.health.state == "finished"
    assert contents() == before


def test_a_patch_sends_what_changed_and_nothing_else():
    old = {"data": [{"x": [1], "y": [2]}, {"x": [5], "y": [6]}], "layout": {"height": 3, "a": {}}}
    new = {"data": [{"x": [1], "y": [3]}, {"x": [5], "y": [6]}], "layout": {"height": 3, "a": {}}}
    patch = changes(old, new).to_plotly_json()
    said = [(o["operation"], o["location"], o["params"]) for o in patch["operations"]]
    assert said == [("Assign", ["data", 0, "y"], {"value": [3]})]
    assert changes(old, old) is None
    other = {"data": [], "layout": {}}
    assert changes(old, other) is other
