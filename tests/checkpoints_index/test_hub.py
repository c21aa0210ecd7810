"""Revisions in the Hub's cache, by huggingface_hub itself, with the network shut."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from checkpoints_index.errors import (
    CheckpointIncomplete,
    CheckpointNotFound,
    PickleRefused,
    RecordError,
)
from checkpoints_index.fingerprint import fingerprint
from checkpoints_index.formats import open_weights, recognise, size_bytes, verify
from checkpoints_index.formats.hub import HubPlace, revision_clock, revisions
from checkpoints_index.layouts import find

OLMOE = "allenai/OLMoE-1B-7B-0924"
REVISIONS = ("main", "step5000-tokens20B", "step10000-tokens41B")


def weights_of(revision):
    random = torch.Generator().manual_seed(REVISIONS.index(revision))
    return {
        "model.layers.0.w": torch.randn(4, 3, generator=random),
        "model.layers.1.w": torch.randn(2, generator=random),
    }


def files_of(revision):
    """A model in two shards, as a repository holds it."""
    shards = {
        f"model-{i:05d}-of-00002.safetensors": save({name: tensor})
        for i, (name, tensor) in enumerate(weights_of(revision).items(), start=1)
    }
    places = dict(zip(weights_of(revision), shards, strict=True))
    index = json.dumps({"weight_map": places}).encode()
    return {**shards, "model.safetensors.index.json": index, "config.json": b"{}"}


def put(cache, repo, revision, files):
    """Files of a revision as the Hub's cache keeps them: blobs, a ref, and a snapshot of links."""
    home = cache / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        blob = home / "blobs" / hashlib.sha256(raw).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(raw)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    ref = home / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of three revisions, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in REVISIONS:
        put(tmp_path, OLMOE, revision, files_of(revision))
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """A Hub that answers, with what was asked of it; downloads land in the cache."""
    asked: list[tuple[str, ...]] = []
    real = huggingface_hub.hf_hub_download

    def download(repo, name, *, revision, cache_dir, local_files_only=False):
        if local_files_only:
            return real(repo, name, revision=revision, cache_dir=cache_dir, local_files_only=True)
        asked.append(("download", name))
        raw = {name: files_of(revision)[name]}
        return str(put(Path(cache_dir or constants.HF_HUB_CACHE), repo, revision, raw) / name)

    def listed(self, repo, *, revision):
        asked.append(("list", revision))
        return [*files_of(revision), "onnx/model.onnx", "README.md"]

    def refs(self, repo):
        asked.append(("refs", repo))
        tags = [SimpleNamespace(name=f"step{n}", target_commit=f"{n:040x}") for n in (512, 1000)]
        return SimpleNamespace(branches=[SimpleNamespace(name="main", target_commit="a" * 40)],
                               tags=tags)  # fmt: skip

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", refs)
    return asked


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_cached_revision_opens_without_the_network(cache, revision):
    address = f"hf://{OLMOE}@{revision}"
    assert recognise(address) == "huggingface"
    weights = open_weights(address)
    assert weights.path == address
    assert torch.equal(weights["model.layers.1.w"], weights_of(revision)["model.layers.1.w"])
    assert weights.fingerprint() == fingerprint(weights_of(revision))
    verify(address, deep=True)
    assert size_bytes(address) == sum(map(len, files_of(revision).values()))


def test_without_a_revision_it_is_main_and_a_commit_will_do(cache):
    main = open_weights(f"hf://{OLMOE}").fingerprint()
    assert main == fingerprint(weights_of("main"))
    commit = (cache / "models--allenai--OLMoE-1B-7B-0924" / "refs" / "main").read_text()
    assert open_weights(f"hf://{OLMOE}@{commit}").fingerprint() == main


def test_what_is_not_cached_is_told_when_the_network_may_not_be_asked(cache):
    for address in (f"hf://{OLMOE}@step7", "hf://EleutherAI/pythia-70m@step1000"):
        with pytest.raises(CheckpointNotFound, match="the network may not be asked"):
            open_weights(address)
    with pytest.raises(CheckpointNotFound, match="no revision of"):
        revisions("EleutherAI/pythia-70m")


def test_a_revision_lacking_a_shard_gives_the_others_and_is_not_whole(cache):
    shard = "model-00002-of-00002.safetensors"
    [snapshot] = [s for s in cache.glob("models--*/snapshots/*") if s.name ==
                  (s.parents[1] / "refs" / REVISIONS[1]).read_text()]  # fmt: skip
    (snapshot / shard).unlink()
    weights = open_weights(f"hf://{OLMOE}@{REVISIONS[1]}")
    assert len(weights) == 2
    assert torch.equal(weights["model.layers.0.w"], weights_of(REVISIONS[1])["model.layers.0.w"])
    with pytest.raises(CheckpointIncomplete, match=f"{shard}: not in the cache"):
        weights["model.layers.1.w"]
    whole = {r.name: r.complete for r in revisions(OLMOE)}
    assert whole == {"main": True, REVISIONS[1]: False, REVISIONS[2]: True}


def test_the_cache_s_revisions_come_by_step_with_the_tokens_their_names_tell(cache):
    told = [(r.name, r.step, r.tokens, r.cached) for r in revisions(OLMOE)]
    assert told == [
        ("step5000-tokens20B", 5000, 20 * 10**9, True),
        ("step10000-tokens41B", 10000, 41 * 10**9, True),
        ("main", None, None, True),
    ]


def test_the_hub_s_own_revisions_are_listed_beside_the_cached(cache, hub):
    told = [(r.name, r.step, r.cached) for r in revisions(OLMOE)]
    assert ("step512", 512, False) in told
    assert ("step5000-tokens20B", 5000, True) in told
    assert [r for r in revisions(OLMOE, online=False) if not r.cached] == []


def test_only_the_files_that_are_asked_for_are_fetched(tmp_path, monkeypatch, hub):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    weights = open_weights(f"hf://{OLMOE}@{REVISIONS[1]}")
    assert len(weights) == 2
    assert hub == [("list", REVISIONS[1]), ("download", "model.safetensors.index.json")]
    hub.clear()
    assert torch.equal(weights["model.layers.1.w"], weights_of(REVISIONS[1])["model.layers.1.w"])
    assert hub == [("download", "model-00002-of-00002.safetensors")]
    hub.clear()
    fetched = ("model.safetensors.index.json", "model-00002-of-00002.safetensors")
    files = files_of(REVISIONS[1])
    assert size_bytes(f"hf://{OLMOE}@{REVISIONS[1]}") == sum(len(files[name]) for name in fetched)
    assert hub == []


def test_what_is_cached_is_not_asked_for_again(cache, hub):
    open_weights(f"hf://{OLMOE}@{REVISIONS[1]}").load()
    assert hub == []


def test_a_hub_that_gives_no_answer_is_one_error(tmp_path, monkeypatch, hub):
    def silent(self, repo, **more):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", silent)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", silent)
    for ask in (lambda: open_weights(f"hf://{OLMOE}@main"), lambda: revisions(OLMOE)):
        with pytest.raises(CheckpointNotFound, match=r"the Hub gave no answer \(ConnectionError"):
            ask()


def test_a_revision_of_pickles_is_refused(cache):
    put(cache, "EleutherAI/pythia-70m", "step1000", {"pytorch_model.bin": b"x", "config.json": b""})
    with pytest.raises(PickleRefused, match="unpickling"):
        open_weights("hf://EleutherAI/pythia-70m@step1000")


@pytest.mark.parametrize(
    "address",
    [
        "hf://", "hf://a/b/c", "hf://../..", "hf://a/..", "hf://a/b@../../x", "hf://a/b@/etc",
        "hf://a/b@x y", "hf://a/b@x\0y", "hf://a/b@" + "x" * 10_000, "hf://<b>/x", "hf://a--b/c",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_by_one_plain_line(cache, address):
    with pytest.raises((RecordError, CheckpointNotFound)) as refused:
        open_weights(address)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("name", "clock"),
    [
        ("step5000-tokens20B", (5000, 20 * 10**9)),
        ("step1000", (1000, None)),
        ("stage1-step140000-tokens294B", (140000, 294 * 10**9)),
        ("step738020-unsharded", (738020, None)),
        ("step_0000100", (100, None)),
        ("iter_0001000", (1000, None)),
        ("ckpt-tokens1.5T", (None, 1_500_000_000_000)),
        ("global_step250", (250, None)),
        ("main", (None, None)),
        ("misstep12", (None, None)),
        ("v1.0", (None, None)),
        ("step" + "9" * 400, (None, None)),
    ],
)
def test_step_and_tokens_are_read_from_a_revision_s_name(name, clock):
    assert revision_clock(name) == clock


def test_a_search_of_the_cache_finds_each_revision_with_its_clock(cache):
    found = {(f.format, f.step, f.tokens, f.complete) for f in find(cache)}
    assert found == {
        ("huggingface", None, None, True),
        ("huggingface", 5000, 20 * 10**9, True),
        ("huggingface", 10000, 41 * 10**9, True),
    }
    one = next(cache.glob("models--*/snapshots/*"))
    assert [f.complete for f in find(one)] == [True]


def test_a_place_of_the_hub_reads_no_bytes_of_its_own():
    place = HubPlace("a/b", local_files_only=True)
    with pytest.raises(RecordError, match="a repository, and no file"):
        place.size()


def test_a_cached_first_shard_without_its_index_is_not_the_model(cache):
    name, raw = next(iter(files_of("main").items()))
    put(cache, "owner/quarter", "main", {name: raw, "config.json": b"{}"})
    [found] = revisions("owner/quarter")
    assert (found.cached, found.complete) == (True, False)
    with pytest.raises(CheckpointIncomplete, match="lacks shard 2"):
        open_weights("hf://owner/quarter")
