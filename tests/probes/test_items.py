"""A task's items, cut out of all, get the same answers as among all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import NANO
from model.data.tokenizer import train_tokenizer
from model.data.world import TASKS, World
from model.evaluation import encode_items, score
from model.lm import MoELM
from probes.inputs.items import items_of, values_of
from workbench.errors import RunNotFound, UsageError
from workbench.planted.model import planted_model


@pytest.fixture(scope="module")
def world():
    tokenizer = train_tokenizer(["the cup, the lamp 3 + 4 = 7"] * 9, 400)
    made = World(0)
    items = {task: made.items(task, 6) for task in list(TASKS)[:4]}
    return encode_items(items, tokenizer), MoELM(NANO, seed=3).eval()


@pytest.mark.parametrize("wanted", [[0], [2], [3, 1], [0, 1, 2, 3]])
def test_answers_to_some_tasks_are_those_they_get_among_all(world, wanted):
    batch, model = world
    tasks = [batch.tasks[n] for n in wanted]
    everything = score(model, batch)
    part = score(model, items_of(batch, tasks))
    assert part.tasks == tuple(tasks)
    assert np.allclose(part.logprob, everything.logprob[wanted], atol=1e-4)
    assert np.array_equal(part.correct, everything.correct[wanted])


def test_sequences_are_cut_to_what_the_task_needs(world):
    batch, _ = world
    lengths = [items_of(batch, task).sequences.shape[1] for task in batch.tasks]
    assert max(lengths) <= batch.sequences.shape[1]
    assert min(lengths) < max(lengths)


def test_one_name_is_a_list_of_one_and_none_is_all(world):
    batch, _ = world
    assert items_of(batch, batch.tasks[1]).tasks == (batch.tasks[1],)
    assert items_of(batch) is batch


def test_an_unknown_task_is_refused_with_those_there_are(world):
    with pytest.raises(RunNotFound, match="the tasks are"):
        items_of(world[0], "code/nothing")


def test_an_exam_without_tasks_is_refused_with_the_remedy():
    with pytest.raises(UsageError, match="encode_items"):
        items_of(None)


def test_a_model_whose_logits_are_not_numbers_is_refused():
    planted = planted_model(items=8)
    model = planted.model()
    with torch.no_grad():
        model.unembed.weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        values_of(model, planted.items)
