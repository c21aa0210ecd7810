"""Rows: means over texts with bounds that know how few they stand on."""

import numpy as np
import pytest
from scipy import stats
from torch import nn

from probes.exam import Exam
from probes.inputs.rows import following_logprob, mean_over_rows, text_rows
from probes.subject import Subject
from workbench.errors import UsageError

EXAM = Exam(tokens=np.arange(12).reshape(3, 4), domains=("a",) * 3)


def test_few_rows_have_the_bounds_of_students_t():
    values = np.array([0.3, 1.9, 1.1, 0.2])
    mean, low, high = mean_over_rows(values)
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert [low, high] == pytest.approx(expected)
    assert mean == pytest.approx(values.mean())


def test_many_rows_have_nearly_the_normal_bounds():
    values = np.random.default_rng(0).normal(size=400)
    _, low, high = mean_over_rows(values)
    expected = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert [low, high] == pytest.approx(expected, abs=0.015)


def test_missing_rows_are_left_out_and_one_row_has_no_bounds():
    values = np.full((20, 3), np.nan)
    values[:, 0] = np.arange(20)
    values[3, 1] = 7.0
    mean, low, high = mean_over_rows(values)
    assert mean[:2].tolist() == [9.5, 7.0]
    assert low[0] < 9.5 < high[0]
    assert np.isnan([low[1], high[1], mean[2], low[2]]).all()


def test_equal_values_have_no_width():
    _, low, high = mean_over_rows(np.full(30, 0.1))
    assert [low, high] == pytest.approx([0.1, 0.1], abs=1e-12)


def test_a_bigram_models_log_probabilities_are_its_tables():
    table = nn.Embedding(12, 12)
    logprob = following_logprob(Subject(table, EXAM), EXAM.tokens)
    plain = table.weight.log_softmax(-1).detach().numpy()
    assert logprob[1].tolist() == pytest.approx([plain[4, 5], plain[5, 6], plain[6, 7]])


@pytest.mark.parametrize(
    ("rows", "found"),
    [([[1, 2], [1]], "lengths"), ([[1, -1]], "from 0"), ([[0.5, 1.0]], "whole"), ([], "0 rows")],
)
def test_rows_that_cannot_be_are_refused(rows, found):
    with pytest.raises(UsageError, match=found):
        text_rows(Subject(nn.Embedding(4, 4), EXAM), rows)
    with pytest.raises(UsageError, match="give longer ones"):
        text_rows(Subject(nn.Embedding(4, 4), EXAM), at_least=5)
