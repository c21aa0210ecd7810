"""The planted records are records (they conform) and hold what was planted."""

import numpy as np
import pytest
import xarray as xr

from workbench.errors import UsageError
from workbench.store.schema import SCHEMA, conform
from workbench.testing import (
    DeadExpert,
    PlantedSkill,
    Ramp,
    activations_record,
    evaluations_record,
    router_record,
    two_arms,
)


def test_every_planted_record_conforms_to_the_schema_and_is_complete():
    made = {
        "router": router_record(steps=10),
        "activations": activations_record(checkpoints=3, tokens=32),
        "evaluations": evaluations_record({"code/add": PlantedSkill("never")}),
    }
    for group, record in made.items():
        assert set(record.data_vars) == set(SCHEMA[group])
        xr.testing.assert_identical(conform(record, group), record)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: router_record(steps=5, seed=seed),
        lambda seed: activations_record(checkpoints=3, tokens=32, seed=seed),
        lambda seed: evaluations_record({"code/add": PlantedSkill("jump")}, seed=seed),
        lambda seed: two_arms(gain={"code/add": 0.1}, seed=seed)[1],
    ],
    ids=["router", "activations", "evaluations", "arms"],
)
def test_the_same_seed_gives_the_same_record_and_another_seed_another(make):
    xr.testing.assert_identical(make(3), make(3))
    assert not make(3).equals(make(4))


def test_the_counts_of_a_router_record_add_up():
    record = router_record(steps=20, k=3, tokens=100)
    assert (record["assignments"].sum("expert") == 300).all()
    assert (record["assignments"] <= 100).all()
    assert (record["domain_assignments"].sum("domain") == record["assignments"]).all()
    np.testing.assert_allclose(record["gate_mass"].sum("expert"), 100, rtol=1e-4)
    np.testing.assert_allclose(record["prob_mass"].sum("expert"), 100, rtol=1e-4)
    diagonal = np.einsum("slee->sle", record["coactivation"].values)
    sampled = record["assignments"].sel(step=record["sample"].values).values
    np.testing.assert_array_equal(diagonal, sampled)


def test_the_router_statistics_are_those_of_one_softmax():
    record = router_record(steps=5, experts=8, k=2)
    assert (record["entropy"] < np.log(8)).all()
    assert (record["topk_mass"] > 2 / 8).all()
    assert (record["topk_mass"] < 1).all()
    assert (record["margin"] > 0).all()


def test_a_dead_expert_lives_until_its_step_and_only_its_layer_suffers():
    record = router_record(steps=40, dead=[DeadExpert(expert=5, step=20, layer=1)])
    dead = record["assignments"].sel(expert=5)
    assert (dead.sel(layer=1, step=slice(20, None)) == 0).all()
    assert (dead.sel(layer=1, step=slice(None, 19)) > 0).all()
    assert (dead.sel(layer=0) > 0).all()


def test_a_ramp_lifts_the_load_of_its_expert_steadily():
    load = router_record(steps=60, ramps=[Ramp(expert=2)])["assignments"].sel(layer=0, expert=2)
    thirds = [load[:20].mean(), load[20:40].mean(), load[40:].mean()]
    assert thirds[0] < thirds[1] < thirds[2]


def test_a_specialised_expert_serves_its_domain_above_all():
    record = router_record(specialised={"code/add": 4})
    counts = record["domain_assignments"].sum("step").sel(layer=0, expert=4)
    assert str(counts.idxmax("domain").item()) == "code/add"
    assert counts.sel(domain="code/add") > 2 * counts.sel(domain="logic/chain")


@pytest.mark.parametrize(
    ("skill", "step", "success"),
    [
        (PlantedSkill("jump", at=500, top=0.9), 499, 0.0),
        (PlantedSkill("jump", at=500, top=0.9), 500, 0.9),
        (PlantedSkill("linear", at=500, width=200, top=1.0), 450, 0.25),
        (PlantedSkill("logistic", at=500, width=200, top=1.0), 600, 0.9),
        (PlantedSkill("never", top=0.9), 10_000, 0.0),
        (PlantedSkill("always", top=0.9), 0, 0.9),
    ],
)
def test_a_skill_follows_its_formula(skill, step, success):
    assert skill.success(np.array([step])).item() == pytest.approx(success)


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_the_stated_onset_is_where_the_success_is_at_the_level(kind):
    skill = PlantedSkill(kind, at=400, width=300, top=0.9)
    assert skill.success(np.array([skill.onset(0.3)])).item() == pytest.approx(0.3)


def test_a_skill_below_the_level_has_no_onset():
    assert np.isnan(PlantedSkill("jump", top=0.4).onset(0.5))
    assert np.isnan(PlantedSkill("never").onset())


def test_observed_accuracy_is_the_planted_probability():
    skill = PlantedSkill("linear", at=480, width=700, top=0.8)
    record = evaluations_record({"code/add": skill}, items=20_000, chance=0.25)
    seen = record["correct"].mean("item").isel(task=0)
    meant = 0.25 + 0.75 * skill.success(record["checkpoint"].values)
    np.testing.assert_allclose(seen, meant, atol=0.015)


def test_log_probability_runs_from_guessing_to_nearly_sure():
    record = evaluations_record({"code/add": PlantedSkill("jump", top=1.0)}, items=5000)
    nats = record["logprob"].mean("item").isel(task=0)
    assert float(nats[0]) == pytest.approx(np.log(0.1), abs=0.1)
    assert float(nats[-1]) == pytest.approx(0, abs=0.1)
    assert (record["logprob"] <= 0).all()


def test_shorter_tasks_are_padded_as_the_schema_says():
    skills = {"code/add": PlantedSkill("always"), "logic/chain": PlantedSkill("never")}
    record = evaluations_record(skills, items={"code/add": 10, "logic/chain": 4})
    padding = record.sel(task="logic/chain").isel(item=slice(4, None))
    assert (padding["correct"] == -1).all()
    assert padding["logprob"].isnull().all()
    assert (record.sel(task="code/add")["correct"] >= 0).all()


def test_the_arms_are_one_up_to_the_fork_and_differ_by_the_gain_afterwards():
    a, b = two_arms(gain={"code/add": 0.2}, items=20_000, fork=500)
    before = slice(None, 500)
    xr.testing.assert_equal(a.sel(checkpoint=before), b.sel(checkpoint=before))
    after = slice(600, None)
    gap = (b["correct"].astype(float) - a["correct"]).sel(checkpoint=after).mean("item")
    np.testing.assert_allclose(gap.sel(task="code/add"), 0.2, atol=0.015)
    np.testing.assert_allclose(gap.sel(task="logic/chain"), 0.0, atol=0.015)
    nats = (b["logprob"] - a["logprob"]).sel(checkpoint=after).mean("item")
    np.testing.assert_allclose(nats.sel(task="code/add"), 0.2 * np.log(10), atol=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: router_record(k=9, experts=8), "k=9 of 8 experts"),
        (lambda: router_record(specialised={"music": 1}), "no domain"),
        (lambda: evaluations_record({}), "0 skills"),
        (lambda: evaluations_record({"a/b": PlantedSkill("never")}, chance=1.0), "chance 1.0"),
        (lambda: PlantedSkill("linear"), "width=0"),
        (lambda: PlantedSkill("jump", top=1.2), "top=1.2"),
        (lambda: two_arms(gain={"code/add": 0.9}), "no accuracy"),
    ],
)
def test_an_impossible_world_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
