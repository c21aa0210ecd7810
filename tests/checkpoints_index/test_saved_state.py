"""Two models in one saved state are never taken for one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp

from checkpoints_index.errors import CheckpointIncomplete, RecordError
from checkpoints_index.formats import open_weights
from checkpoints_index.formats.saved_state import weight_names

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ZEROS, ONES = torch.zeros(2), torch.ones(2)


def pickled(folder, state):
    torch.save(state, folder / "last.pt")
    return open_weights(folder / "last.pt", allow_pickle=True)


def distributed(folder, state):
    dcp.save(state, checkpoint_id=folder / "dcp", no_dist=True)
    return open_weights(folder / "dcp")


@pytest.mark.parametrize("saved", [pickled, distributed])
@pytest.mark.parametrize(
    ("state", "weights"),
    [
        ({"state_dict": {"w": ZEROS}, "ema": {"state_dict": {"w": ONES}}}, {"w": ZEROS}),
        (
            {"student": {"model": {"w": ZEROS}}, "teacher": {"model": {"w": ONES}}},
            {"student.model.w": ZEROS, "teacher.model.w": ONES},
        ),
        (
            {"policy": {"w": ZEROS}, "reward": {"model": {"v": ONES}}},
            {"policy.w": ZEROS, "reward.model.v": ONES},
        ),
        (
            {"model": {"w": ZEROS}, "module": {"w": ONES}, "optimizer": {"m": ONES}},
            {"model.w": ZEROS, "module.w": ONES},
        ),
        ({"app": {"model": {"w": ZEROS}, "n": ONES}, "step": ONES}, {"w": ZEROS}),
    ],
    ids=["average beside", "student and teacher", "policy and reward", "two on top", "nested"],
)
def test_each_weight_is_the_one_that_its_name_says(tmp_path, saved, state, weights):
    held = saved(tmp_path, state).load()
    assert set(held) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(held[name], tensor), name


def test_two_tensors_of_one_name_are_refused_with_both_their_keys(tmp_path):
    with pytest.raises(RecordError, match=r"\('a\.b',\) and \('a', 'b'\) are both called 'a\.b'"):
        len(pickled(tmp_path, {"a.b": ZEROS, "a": {"b": ONES}}))
    with pytest.raises(RecordError, match="'one' and 'two' are both called"):
        weight_names({"one": ("model", "a.b"), "two": ("model", "a", "b")})


def test_pickled_shards_that_hold_one_name_with_other_values_are_refused(tmp_path):
    first, second = (tmp_path / f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2))
    torch.save({"a": ZEROS, "tied": ONES}, first)
    torch.save({"b": ZEROS, "tied": ONES}, second)
    assert set(open_weights(tmp_path, allow_pickle=True)) == {"a", "b", "tied"}
    torch.save({"b": ZEROS, "tied": ZEROS}, second)
    with pytest.raises(CheckpointIncomplete, match=r"00002\.bin: holds 'tied', and so does"):
        len(open_weights(tmp_path, allow_pickle=True))
