"""What is written down about where a result comes from, and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

from workbench.provenance import provenance


def test_it_is_plain_data_with_the_versions_that_make_numbers():
    said = json.loads(json.dumps(provenance()))
    assert said["packages"]["numpy"] == version("numpy")
    assert said["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert said["utc"].endswith("+00:00")


def test_secrets_on_the_command_line_and_in_the_environment_stay_out(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    words = ["workbench", "train", "--tokens", "4096", "--hf-token", "hf_aaa", "--api-key=hf_bbb",
             "--api_key", "hf_ccc", "--seed", "7", "--PASSWORD", "hf_ddd", "--token",
             "--fast"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    said = provenance()
    assert "hf_" not in json.dumps(said["command"])
    assert "hf_environment" not in json.dumps(said)
    assert said["command"] == [
        "workbench", "train", "--tokens", "4096", "--hf-token", "...", "--api-key=...",
        "--api_key", "...", "--seed", "7", "--PASSWORD", "...", "--token", "--fast",
    ]  # fmt: skip


def test_the_commit_is_that_of_the_working_folder_and_edits_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git"] is None

    def git(*words):
        name = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *name, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    assert provenance()["git"] == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "a").write_text("2")
    assert provenance()["git"]["changed"] is True


def test_a_machine_without_git_is_no_obstacle(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["git"] is None
