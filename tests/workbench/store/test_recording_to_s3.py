"""A training whose record goes to a bucket, and whoever reads it from there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import workbench as wb
from model.lm import MoELM
from workbench.errors import RunNotFound

pytest.importorskip("obstore", reason="leases on object storage need obstore")


def train(recorder, first, last):
    for step in range(first, last + 1):
        with recorder.step(step, tokens=16):
            torch.manual_seed(step)
            tokens = torch.randint(0, 99, (2, 9))
            recorder.model(tokens[:, :-1], tokens[:, 1:], return_type="loss").backward()
            recorder.log(loss=step)


def test_a_recorder_writes_to_a_bucket_and_the_run_is_opened_by_folder_and_by_url(
    place, tmp_path, tiny_plan
):
    model = MoELM(tiny_plan.model)
    with wb.Recorder(model, tmp_path / "run", store=place) as recorder:
        train(recorder, 1, 6)
    assert not (tmp_path / "run" / "store").exists()
    here, there = wb.open_run(tmp_path / "run"), wb.open_run(place)
    for run in (here, there):
        assert run.train.loss.values.tolist() == [1, 2, 3, 4, 5, 6]
        assert (
            run.router.assignments.sum("expert") == 16 * tiny_plan.model.experts_per_token
        ).all()
    assert repr(there)
    opened = xr.open_dataset(str(tmp_path / "run"), engine="workbench", group="train")
    np.testing.assert_array_equal(opened.loss, here.train.loss)
    assert here.results.list() == []


def test_a_training_goes_on_in_the_bucket_that_run_json_names(place, tmp_path, tiny_plan):
    model = MoELM(tiny_plan.model)
    with wb.Recorder(model, tmp_path / "run", store=place) as recorder:
        train(recorder, 1, 4)
        recorder._writer.flush(tag=4)
        train(recorder, 5, 6)
    with wb.Recorder(model, tmp_path / "run", resume_at=4) as recorder:
        assert recorder.set_aside.steps == (5, 6)
        train(recorder, 5, 9)
    assert wb.open_run(tmp_path / "run").router.step.values.tolist() == list(range(1, 10))


def test_a_bucket_without_a_run_is_told_as_such(place):
    with pytest.raises(RunNotFound, match="no store at s3://"):
        wb.open_run(place + "-other")
