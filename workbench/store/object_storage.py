"""A store under a prefix of an S3 bucket, or of whatever speaks S3.

Needs   s3://bucket/prefix; credentials and endpoint from the environment or storage_options; the
        package obstore for writing (reading does without).
Yields  ObjectStorage, the Location of such a store.

Safety  Icechunk writes every branch and tag on a condition (If-None-Match for a new one, If-Match
        for a moved one), so two committers cannot both be told that they succeeded. A service that
        ignores those headers is not fit for writing; nothing here turns the conditions off.
Whole   A store is made on this machine and copied, the branch "main" last and on the condition that
        there is none: that one request makes it a store. What was cut short before it is none:
        `open` does not find one, and `create` begins again over what lies there.
Locks   Leases (lease.py) under <prefix>/locks.

Environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_ALLOW_HTTP.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import icechunk as ic

from workbench.errors import RunExists, RunNotFound, UsageError
from workbench.store.location import COMMIT_LOCK, LOCKS, Location, opening, shown
from workbench.store.names import MAIN, check_branch

if TYPE_CHECKING:
    from obstore.store import S3Store

    from workbench.store.lease import Lease

OPTIONS = {
    "endpoint_url": str,
    "region": str,
    "access_key_id": str,
    "secret_access_key": str,
    "session_token": str,
    "anonymous": bool,
    "allow_http": bool,
    "force_path_style": bool,
}
"""What storage_options may hold, as for `icechunk.s3_storage`."""

BRANCH = f"refs/branch.{MAIN}/ref.json"
"""The object that makes a prefix a store: the branch main, as Icechunk 1.x names it."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PART = re.compile(r"[A-Za-z0-9!_.*'()=+@, -]+")


class ObjectStorage(Location):
    """A store at s3://bucket/prefix.

    Args:
        url: the store's URL.
        storage_options: any of OPTIONS; what is not given comes from the environment. `region` is
            us-east-1 where an endpoint is named and nothing else is said; `force_path_style` is on
            with an endpoint. Plain http is for this machine, unless `allow_http` says otherwise.

    Raises:
        UsageError: not such a URL, or an option that does not exist.

    Example:
        >>> ObjectStorage("s3://bucket/runs/../secret")
        Traceback (most recent call last):
            ...
        workbench.errors.UsageError: 's3://bucket/runs/../secret': expected s3://bucket/prefix, ...
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.bucket, self.prefix = _parse(url)
        self._options = _complete(dict(storage_options or {}))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def storage(self) -> ic.Storage:
        known = self._options
        keys = {
            k: known[k] for k in OPTIONS if k.endswith(("_key_id", "_key", "_token")) if k in known
        }
        if known.get("anonymous"):
            keys = {"anonymous": True}
        return ic.s3_storage(
            bucket=self.bucket,
            prefix=self.prefix,
            region=known.get("region"),
            endpoint_url=known.get("endpoint_url"),
            allow_http=known["allow_http"],
            force_path_style=known["force_path_style"],
            from_env=None if keys else True,
            **keys,
        )

    @cached_property
    def _locks(self) -> S3Store:
        # A renewal that hangs must end before the lease does.
        return self._objects(LOCKS, patience_s=20)

    def _objects(self, below: str = "", patience_s: int = 60) -> S3Store:
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise UsageError(
                f"writing to {self} needs obstore: pip install 'training-dynamics-workbench[s3]'."
            ) from error
        known = self._options
        words = {
            "endpoint": known.get("endpoint_url"),
            "region": known.get("region"),
            "access_key_id": known.get("access_key_id"),
            "secret_access_key": known.get("secret_access_key"),
            "session_token": known.get("session_token"),
            "skip_signature": known.get("anonymous"),
            "virtual_hosted_style_request": not known["force_path_style"],
        }
        return S3Store(
            self.bucket,
            prefix=f"{self.prefix}/{below}".rstrip("/"),
            client_options={"allow_http": known["allow_http"], "timeout": f"{patience_s // 2}s"},
            retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=patience_s)},
            **{name: value for name, value in words.items() if value is not None},
        )

    def exists(self) -> bool:
        return self._find() is not None

    def _find(self) -> ic.Repository | None:
        storage = self.storage()
        try:
            return ic.Repository.open(storage, opening()) if ic.Repository.exists(storage) else None
        except ic.IcechunkError as error:
            raise RunNotFound(
                f"{self} cannot be read: {_gist(error)}. Check the bucket, AWS_ACCESS_KEY_ID, "
                f"AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL, or storage_options."
            ) from error

    def make(self, config: ic.RepositoryConfig, fill: Callable[[ic.Repository], None]) -> None:
        if self.exists():
            raise RunExists(
                f"{self} exists already; open it with RunStore.open, or choose another prefix."
            )
        bucket = self._objects()
        from obstore.exceptions import BaseError

        from workbench.store.lease import one_line

        with TemporaryDirectory(prefix="store-") as folder:
            # On a disk Icechunk lays out the same objects under the same names.
            repository = ic.Repository.create(ic.local_filesystem_storage(folder), config=config)
            repository.save_config()
            fill(repository)
            try:
                self._refuse_strangers(bucket)
                self._upload(Path(folder), bucket)
            except BaseError as error:
                raise ConnectionError(
                    f"{self} cannot be written: {one_line(error)}. Check that these credentials "
                    f"may list, read and write there."
                ) from error

    def _upload(self, folder: Path, bucket: S3Store) -> None:
        """Copy a store from a folder, the branch last and only where there is none."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        ref = folder / BRANCH
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path != ref:
                key = path.relative_to(folder).as_posix()
                obstore.put(bucket, key, path.read_bytes(), mode="overwrite")
        try:
            obstore.put(bucket, BRANCH, ref.read_bytes(), mode="create")
        except AlreadyExistsError as error:
            # Ours, when the answer to the first try was lost on the way.
            if bytes(obstore.get(bucket, BRANCH).bytes()) != ref.read_bytes():
                raise RunExists(f"{self} was made by another process just now; open it.") from error

    def _refuse_strangers(self, bucket: S3Store) -> None:
        """RunExists where objects of another kind lie below the prefix."""
        import obstore

        parts = ("chunks", "manifests", "refs", "snapshots", "transactions", LOCKS)
        own = ("config.yaml", *(f"{part}/" for part in parts))
        for some in obstore.list(bucket, chunk_size=100):
            for entry in some:
                if not entry["path"].removeprefix(f"{self.prefix}/").startswith(own):
                    raise RunExists(
                        f"{self} holds {shown(entry['path'])} already, which is no part of a "
                        f"store; choose another prefix."
                    )

    def sync(self) -> None:
        """Nothing: what the service has acknowledged is durable."""

    def branch_lock(self, branch: str) -> Lease:
        from workbench.store.lease import Lease

        name = check_branch(branch)
        return Lease(self._locks, name, f"branch {name!r} of {self}")

    def commit_lock(self) -> Lease:
        from workbench.store.lease import Lease

        return Lease(self._locks, COMMIT_LOCK, f"the store {self}")

    @property
    def journal_folder(self) -> Path:
        """In the user's state folder (XDG_STATE_HOME), one a store: rows that wait for their commit
        stay on the machine that recorded them.
        """
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        place = f"{self._options.get('endpoint_url', '')} {self}"
        name = hashlib.sha256(place.encode()).hexdigest()[:24]
        return Path(state).expanduser() / "training-dynamics-workbench" / "journal" / name


def _parse(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    parts = prefix.split("/")
    fits = (
        scheme == "s3"
        and _BUCKET.fullmatch(bucket)
        and len(prefix) <= 800
        and all(_PART.fullmatch(part) and part.strip(".") for part in parts)
    )
    if not fits:
        raise UsageError(
            f"{shown(url)}: expected s3://bucket/prefix, the prefix at most 800 letters, digits "
            f"and !_.*'()=+@,- with single slashes between its parts, none of them '.' or '..'."
        )
    return bucket, prefix


def _complete(options: dict[str, Any]) -> dict[str, Any]:
    """`options`, checked, and what the environment adds."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise UsageError(
                f"storage_options has no {shown(str(name))}; it may have {', '.join(OPTIONS)}."
            )
        if not isinstance(value, OPTIONS[name]):
            raise UsageError(
                f"storage_options[{name!r}] is {type(value).__name__}, "
                f"expected {OPTIONS[name].__name__}."
            )
    env = os.environ
    named = {
        "endpoint_url": env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
        "region": env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"),
    }
    options = {name: value for name, value in named.items() if value} | options
    endpoint = options.get("endpoint_url")
    if endpoint:
        options.setdefault("region", "us-east-1")
    options.setdefault("force_path_style", bool(endpoint))
    said = env.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    allow = options.setdefault("allow_http", said or _is_this_machine(endpoint))
    if endpoint and urlsplit(endpoint).scheme == "http" and not allow:
        raise UsageError(
            f"the endpoint {shown(endpoint)} is plain http, where anybody on the way can read the "
            f"record; use https, or say allow_http=True (AWS_ALLOW_HTTP=true)."
        )
    return options


def _is_this_machine(endpoint: str | None) -> bool:
    host = urlsplit(endpoint or "").hostname or ""
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


def _gist(error: Exception) -> str:
    """What went wrong, out of Icechunk's chain of causes: its first and its last line."""
    lines = [line.strip(" x|`->\t") for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    return "; ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else type(error).__name__
