"""Revisions of a model on the Hugging Face Hub: those in the cache of this machine, and others.

Needs   hf://owner/name@revision; huggingface_hub, imported when it is asked.
Yields  HubPlace: the revision's files, each fetched when it is read; `revisions`: what there is;
        `revision_clock`: the step and the tokens that a revision's name tells.

The cache comes first, and HF_HUB_OFFLINE is honoured: with it nothing is asked of the network. Of a
repository only config.json, the index and the files that hold the tensors asked for are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from checkpoints_index.errors import CheckpointNotFound, RecordError
from checkpoints_index.formats.native import ONE_FILE
from checkpoints_index.formats.place import LocalPlace, Place, shown
from checkpoints_index.formats.recognition import SHARD_INDEX

_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+|[\w.-]+)(?:@(?P<revision>[^@\s]+))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STEP = re.compile(r"(?:^|[-_/])(?:global_?)?(?:step|iter|ba)[-_]?0*(\d{1,15})(?![\d.])")
_TOKENS = re.compile(r"(?:^|[-_/])tokens[-_]?(\d{1,15}(?:\.\d+)?)([KMBT]?)(?:B?$|[-_/])", re.I)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def revision_clock(revision: str) -> tuple[int | None, int | None]:
    """The step and the tokens seen that a revision's name tells; None for what it does not.

    Tokens are as the name rounds them: "20B" is 20,000,000,000.

    Example:
        >>> revision_clock("step5000-tokens20B"), revision_clock("step1000")
        ((5000, 20000000000), (1000, None))
        >>> revision_clock("main")
        (None, None)
    """
    step, tokens = _STEP.search(revision), _TOKENS.search(revision)
    seen = round(float(tokens[1]) * _UNITS[tokens[2].upper()]) if tokens else None
    return (int(step[1]) if step else None), seen


@dataclass(frozen=True)
class Revision:
    """One revision of a repository."""

    name: str
    """Branch or tag; the commit where no name is known for it."""

    commit: str
    """The commit's 40 digits."""

    step: int | None
    """Optimizer step that the name tells."""

    tokens: int | None
    """Training tokens that the name tells, as it rounds them."""

    cached: bool
    """Whether files of it lie in the cache of this machine."""

    complete: bool = False
    """Whether the cache holds all of its weights."""


def revisions(repo: str, *, online: bool = True, cache_dir: str | None = None) -> list[Revision]:
    """The revisions of a repository, by step and name: the cache's, and the Hub's where it answers.

    Args:
        repo: owner/name.
        online: ask the Hub too; not done where HF_HUB_OFFLINE is set.
        cache_dir: another cache than the user's.

    Raises:
        CheckpointNotFound: neither the cache nor the Hub knows the repository.
    """
    from huggingface_hub import HfApi, constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    _check(repo, None)
    found: dict[str, Revision] = {}
    try:
        held = [
            r for r in scan_cache_dir(cache_dir or constants.HF_HUB_CACHE).repos
            if r.repo_id == repo and r.repo_type == "model"
        ]  # fmt: skip
    except CacheNotFound:
        held = []
    for cached in held:
        for one in cached.revisions:
            for name in sorted(one.refs) or [one.commit_hash]:
                found[name] = _revision(
                    repo, name, one.commit_hash, cached=True, cache_dir=cache_dir
                )
    if online and not constants.HF_HUB_OFFLINE:
        try:
            refs = HfApi().list_repo_refs(repo)
        except Exception as error:  # the network's, the Hub's and the proxy's, of many kinds
            if not found:
                _unreachable(repo, error)
        else:
            for ref in [*refs.branches, *refs.tags]:
                if ref.name not in found or found[ref.name].commit != ref.target_commit:
                    found[ref.name] = _revision(
                        repo, ref.name, ref.target_commit, cached=False, cache_dir=cache_dir
                    )
    if not found:
        raise CheckpointNotFound(f"no revision of {repo} in the cache; fetch one, or go online.")
    return sorted(found.values(), key=lambda r: (r.step is None, r.step or 0, r.name))


def _revision(
    repo: str, name: str, commit: str, *, cached: bool, cache_dir: str | None
) -> Revision:
    step, tokens = revision_clock(name)
    complete = False
    if cached:
        place = HubPlace(repo, commit, cache_dir=cache_dir, local_files_only=True)
        complete = place.weights_are_there()
    return Revision(name, commit, step, tokens, cached, complete)


def _check(repo: str, revision: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise RecordError(f"hf://{shown(repo)[1:-1]}: not owner/name of a repository.") from None
    if revision is not None and (
        not revision.isprintable()
        or ".." in revision
        or revision[0] in "/\\"
        or len(revision) > 255
    ):
        raise RecordError(f"hf://{repo}@{shown(revision)[1:-1]}: not the name of a revision.")


def _unreachable(what: str, error: BaseException) -> NoReturn:
    reason = shown(" ".join(str(error).split()))[1:-1]
    raise CheckpointNotFound(
        f"{what}: not in the cache, and the Hub gave no answer ({type(error).__name__}: "
        f"{reason}); go online, or fetch it where you are."
    ) from None


class HubPlace(Place):
    """A revision of a repository: its files by name, each fetched when it is first read.

    Args:
        repo: owner/name.
        revision: branch, tag or commit.
        cache_dir: another cache than the user's.
        local_files_only: ask nothing of the network.
    """

    eager = False

    def __init__(
        self,
        repo: str,
        revision: str = "main",
        *,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        _check(repo, revision)
        from huggingface_hub import constants

        self.repo, self.revision, self.cache_dir = repo, revision, cache_dir
        self.offline = local_files_only or constants.HF_HUB_OFFLINE

    @classmethod
    def parse(cls, address: str, **options: Any) -> HubPlace:
        """The place that hf://owner/name@revision means; RecordError where it is none.

        Example:
            >>> str(HubPlace.parse("hf://allenai/OLMoE-1B-7B-0924@step5000-tokens20B"))
            'hf://allenai/OLMoE-1B-7B-0924@step5000-tokens20B'
        """
        match = _ADDRESS.fullmatch(address)
        if not match:
            raise RecordError(f"{shown(address)}: expected hf://owner/name@revision.")
        return cls(match["repo"], match["revision"] or "main", **options)

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}"

    @property
    def name(self) -> str:
        return self.revision

    def is_file(self) -> bool:
        return False

    def is_folder(self) -> bool:
        return bool(self.names())

    def size(self) -> int:
        raise RecordError(f"{self}: a repository, and no file.")

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        raise RecordError(f"{self}: a repository, and no file.")

    def names(self) -> list[str]:
        """Files of the revision; CheckpointNotFound, with its reason, where nothing is known."""
        return list(self._names)

    @cached_property
    def _names(self) -> list[str]:
        from huggingface_hub import HfApi

        cached = self.cached_names()
        # Either file tells where all weights are: then there is nothing to ask the Hub.
        if {ONE_FILE, SHARD_INDEX} & set(cached) or (self.offline and cached):
            return cached
        if self.offline:
            raise CheckpointNotFound(
                f"{self}: not in the cache, and the network may not be asked; fetch it first."
            )
        try:
            files = HfApi().list_repo_files(self.repo, revision=self.revision)
        except Exception as error:  # the network's, the Hub's and the proxy's, of many kinds
            if not cached:
                _unreachable(str(self), error)
            return cached
        return sorted(name for name in files if "/" not in name)

    def cached_names(self) -> list[str]:
        """Files of the revision that the cache holds."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                self.repo, revision=self.revision, cache_dir=self.cache_dir, local_files_only=True
            )
        except LocalEntryNotFoundError:
            return []
        return LocalPlace(folder).names()

    def weights_are_there(self) -> bool:
        """Whether every file of weights lies in the cache; headers alone are read."""
        from checkpoints_index.errors import CheckpointIncomplete, PickleRefused
        from checkpoints_index.formats.opening import open_weights

        try:
            open_weights(self).check()
        except (CheckpointIncomplete, CheckpointNotFound, PickleRefused, RecordError):
            return False
        return True

    def _child(self, name: str) -> HubFile:
        return HubFile(self, name)


class HubFile(LocalPlace):
    """One file of a revision; fetched into the cache when it is first read."""

    def __init__(self, home: HubPlace, name: str) -> None:
        self.home, self._name = home, name

    def __str__(self) -> str:
        return f"{self.home}/{self._name}"

    @property
    def name(self) -> str:
        return self._name

    @cached_property
    def path(self) -> Any:  # type: ignore[override]
        """Where it lies in the cache, once it is there."""
        from pathlib import Path

        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        about: dict[str, Any] = {
            "revision": self.home.revision,
            "cache_dir": self.home.cache_dir,
        }
        try:
            return Path(hf_hub_download(self.home.repo, self._name, local_files_only=True, **about))
        except LocalEntryNotFoundError:
            if self.home.offline:
                raise CheckpointNotFound(
                    f"{self}: not in the cache, and the network may not be asked; fetch it first."
                ) from None
        try:
            return Path(hf_hub_download(self.home.repo, self._name, **about))
        except Exception as error:  # the network's, the Hub's and the proxy's, of many kinds
            _unreachable(str(self), error)

    def is_file(self) -> bool:
        return self._name in self.home.names() or bool(self.path)

    def is_folder(self) -> bool:
        return False

    def size(self) -> int:
        return int(self.path.stat().st_size)

    def _child(self, name: str) -> LocalPlace:
        raise RecordError(f"{self}: a file, and no folder.")

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        return LocalPlace(self.path).ranges(wanted)
