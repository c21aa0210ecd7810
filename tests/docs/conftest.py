"""The documentation's own code is found, and the site is built once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))


class Page(HTMLParser):
    """One page: its anchors, where it leads to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.anchors, self.links, self.loaded = path, set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.anchors |= {told[key] for key in ("id", "name") if told.get(key)}
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        elif tag == "link" and told.get("rel") not in ("canonical", "index", "search"):
            self.loaded.append(told["href"])
        elif tag in ("script", "img", "iframe", "source") and told.get("src"):
            self.loaded.append(told["src"])


class Site:
    """A built site."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.pages = {path: Page(path) for path in home.rglob("*.html")}

    def has(self, name: str) -> bool:
        return self.home / f"{name}.html" in self.pages

    def text(self, name: str) -> str:
        return (self.home / f"{name}.html").read_text(encoding="utf-8")

    def broken(self) -> list[str]:
        """Links and loaded files within the site that are not there."""
        found = []
        for path, page in self.pages.items():
            for link in [*page.links, *page.loaded]:
                parts = urlsplit(link)
                if parts.scheme or parts.netloc or link in ("", "#"):
                    continue
                there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                known = self.pages.get(there)
                if not there.exists():
                    found.append(f"{path.relative_to(self.home)}: {link}")
                elif parts.fragment and known and unquote(parts.fragment) not in known.anchors:
                    found.append(f"{path.relative_to(self.home)}: no anchor {link}")
        return found


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The whole site, built from a copy of its sources with every warning an error."""
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("html")
    unbuilt = shutil.ignore_patterns("generated", "_build", "__pycache__")
    for folder in ("docs", "notebooks"):
        shutil.copytree(ROOT / folder, sources / folder, ignore=unbuilt)
    for file in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / file, sources / file)
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", "html"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, str(sources / "docs"), str(built)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return Site(built)
