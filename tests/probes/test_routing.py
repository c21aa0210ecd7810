"""Routing: a checkpoint and its record say the same; what cannot be is refused or undefined."""

import numpy as np
import pytest
import xarray as xr

from model.config import NANO
from model.lm import MoELM
from probes.coactivation import coactivation_fixed
from probes.committee import committee
from probes.confidence import confidence_fixed
from probes.divergence import divergence
from probes.domains import domains_fixed
from probes.exam import Exam
from probes.flow import flow
from probes.inputs.routing import RecordedRouting, routing_of
from probes.registry import find
from probes.subject import Subject
from probes.vocabulary import vocabulary
from workbench.errors import SchemaError, UsageError
from workbench.planted.patterns import Patterns
from workbench.testing import activations_record

ON_FIXED_TOKENS = {
    "confidence-fixed": confidence_fixed,
    "coactivation-fixed": coactivation_fixed,
    "flow": flow,
    "domains-fixed": domains_fixed,
    "vocabulary": lambda source: vocabulary(source, min_count=2),
    "committee": committee,
}


@pytest.fixture(scope="module")
def subject() -> Subject:
    tokens = np.random.default_rng(0).integers(0, 60, (8, 32))
    names = ("code", "code", "prose", "prose", "logic", "logic", "code", "prose")
    return Subject(MoELM(NANO, seed=1), Exam(tokens=tokens, domains=names), step=70)


def recorded(subject: Subject) -> xr.Dataset:
    """What a run would have recorded of this checkpoint."""
    labels = subject.labels
    dims = ("checkpoint", "token", "layer")
    return xr.Dataset(
        {
            "expert_ids": ((*dims, "k"), subject["expert_ids"].numpy().swapaxes(0, 1)[None]),
            "router_probs": (
                (*dims, "expert"),
                subject["router_probs"].numpy().swapaxes(0, 1)[None],
            ),
        },
        coords={
            "checkpoint": [70],
            "token_id": labels["token_id"],
            "domain": labels["domain"],
            "document": labels["row"],
        },
    )


@pytest.mark.parametrize("name", ON_FIXED_TOKENS)
def test_a_checkpoint_and_its_record_give_the_same_numbers(subject, name):
    ask = ON_FIXED_TOKENS[name]
    alone, along = ask(subject), ask(recorded(subject)).isel(checkpoint=0, drop=True)
    assert "checkpoint" not in alone.dims
    for variable in alone.data_vars:
        np.testing.assert_array_equal(alone[variable], along[variable])


@pytest.mark.parametrize("name", ON_FIXED_TOKENS)
def test_every_number_says_its_unit_and_what_its_interval_means(subject, name):
    found = ON_FIXED_TOKENS[name](subject)
    for variable in found.data_vars:
        assert {"units", "long_name", "interval"} <= set(found[variable].attrs)
    assert {"n", "n_meaning", "blocks"} <= set(found.attrs)


@pytest.mark.parametrize("name", ON_FIXED_TOKENS)
def test_what_a_probe_needs_is_what_it_reads(subject, name):
    probe = find(name)
    again = Subject(subject.model, subject.exam, sites=probe.needs)
    ON_FIXED_TOKENS[name](again)
    assert set(again._sites) == set(probe.needs)


@pytest.mark.parametrize("name", ON_FIXED_TOKENS)
@pytest.mark.parametrize("experts", [1, 2, 64])
def test_any_number_of_experts_gives_numbers_without_a_warning(name, experts):
    k = min(2, experts)
    sets = [[(i + j) % experts for j in range(k)] for i in range(min(experts, 5))]
    router = Patterns(sets=sets, mix=[[1 / len(sets)] * len(sets)] * 3, experts=experts)
    record = router.record(rows=3, row_tokens=20, layers=2)
    record = record.assign_coords(token_id=record["token_id"] % 10)
    found = ON_FIXED_TOKENS[name](record)
    assert found.sizes["checkpoint"] == 1


@pytest.mark.parametrize("name", ON_FIXED_TOKENS)
def test_dropped_assignments_count_for_no_expert(name):
    record = Patterns(sets=[[0, 1], [2, 3]], mix=[[0.5, 0.5]] * 2, experts=4).record(
        rows=4, row_tokens=20, layers=2
    )
    record["expert_ids"][0, ::5, :, 1] = -1
    record = record.assign_coords(token_id=record["token_id"] % 10)
    found = ON_FIXED_TOKENS[name](record)
    if "share" in found and "domain" in found["share"].dims:
        kept = (record["expert_ids"] >= 0).sum("k").mean("token")
        per_domain = found["share"].sum("expert").mean("domain")
        np.testing.assert_allclose(per_domain, kept, rtol=1e-5)


@pytest.mark.parametrize("name", ON_FIXED_TOKENS)
def test_one_domain_of_one_text_has_no_interval(name):
    record = Patterns(sets=[[0], [1]], mix=[[0.5, 0.5]], experts=2).record(
        rows=1, row_tokens=60, layers=2
    )
    record = record.assign_coords(token_id=record["token_id"] % 10)
    found = ON_FIXED_TOKENS[name](record)
    bounds = [v for v in found.data_vars if str(v).endswith(("_low", "_high"))]
    assert bounds
    assert all(found[v].isnull().all() for v in bounds)


def test_rows_are_the_blocks_of_a_checkpoint(subject):
    tokens = routing_of(subject).tokens
    assert (tokens.blocks_are, len(tokens.starts)) == ("rows", 8)
    assert tokens.domains == ["code", "prose", "logic"]


def test_stretches_of_text_never_cross_a_domain():
    record = activations_record(checkpoints=1, tokens=1001)
    tokens = RecordedRouting(record).tokens
    for start, size in zip(tokens.starts, tokens.block_sizes.astype(int), strict=True):
        assert len(set(tokens.domain[start : start + size])) == 1
    assert tokens.block_sizes.sum() == 1001


def test_the_clocks_of_the_checkpoints_are_kept():
    found = confidence_fixed(activations_record(checkpoints=3, tokens=60), n_boot=5)
    assert found["tokens_seen"].dims == ("checkpoint",)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r: r.assign(expert_ids=r["expert_ids"] * 0), SchemaError, "names an expert twice"),
        (lambda r: r.assign(expert_ids=r["expert_ids"] * 0 - 1), SchemaError, "was this checkpoi"),
        (lambda r: r.assign(expert_ids=r["expert_ids"] + 90), SchemaError, "expected 0 to 15"),
        (lambda r: r.isel(token=[0]), UsageError, "found 1 tokens"),
        (lambda r: r.isel(k=0), SchemaError, "transpose or name its axes"),
        (lambda r: r.drop_vars("expert_ids"), SchemaError, "lacks expert_ids"),
        (lambda r: r.isel(checkpoint=[]), UsageError, "no checkpoint"),
    ],
)
def test_routing_that_cannot_be_is_refused_with_the_remedy(change, error, message):
    with pytest.raises(error, match=message):
        coactivation_fixed(change(activations_record(checkpoints=2, tokens=40)))


def test_a_probe_of_probabilities_says_that_they_were_not_recorded():
    record = activations_record(checkpoints=2, tokens=40).drop_vars("router_probs")
    for ask in (confidence_fixed, committee, divergence):
        with pytest.raises(SchemaError, match="router_probs"):
            ask(record)
