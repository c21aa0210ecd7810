"""What the index holds of checkpoints that are saved twice, or over one another."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_index.index import CheckpointIndex
from workbench.capture.checkpoint_entry import enter_checkpoint


@pytest.fixture
def enter(tmp_path):
    """Saves weights of one value at a path and enters them."""

    def save_and_enter(step, name, value, branch="main"):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        save_file({"w": torch.full((2, 2), float(value))}, str(path / "model.safetensors"))
        enter_checkpoint(
            tmp_path, path, branch=branch, step=step, tokens_seen=step * 10, parent=None, about={}
        )

    return save_and_enter


def entries(tmp_path):
    return {r.step: (r.uri, r.complete) for r in CheckpointIndex(tmp_path).list()}


def test_a_checkpoint_saved_over_that_of_another_step_marks_it_with_a_warning(tmp_path, enter):
    enter(1, "last", 1)
    with pytest.warns(RuntimeWarning, match="step 1 .* overwritten by that of step 2"):
        enter(2, "last", 2)
    assert entries(tmp_path) == {1: ("last", False), 2: ("last", True)}


def test_the_same_weights_saved_twice_stay_where_they_were_entered_first(tmp_path, enter):
    enter(1, "step-1", 1)
    enter(1, "last", 1)
    enter(2, "last", 2)
    assert entries(tmp_path) == {1: ("step-1", True), 2: ("last", True)}


def test_other_weights_of_the_same_step_made_again_after_a_resume_take_its_place(tmp_path, enter):
    enter(1, "before", 1)
    enter(1, "after", 2)
    assert entries(tmp_path) == {1: ("after", True)}


def test_the_second_path_is_entered_where_the_first_holds_the_weights_no_longer(tmp_path, enter):
    enter(1, "first", 1)
    (tmp_path / "first" / "model.safetensors").unlink()
    enter(1, "second", 1)
    assert entries(tmp_path) == {1: ("second", True)}
