"""Every mixture-of-experts family of the installed transformers: captured exactly, or refused with
its reason. The table in docs/adapters.md is what this run gives.

To write the table anew: UPDATE_DOCS=1 python -m pytest tests/workbench/capture/adapters -k table
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from workbench.capture.accumulators import Accumulators, Table
from workbench.capture.adapters.exceptions import EXCEPTIONS, WITHIN, named
from workbench.capture.adapters.find import find_routers
from workbench.capture.adapters.hugging_face import meaning_of
from workbench.capture.adapters.module_names import parent
from workbench.capture.route_stats import route_stats
from workbench.errors import CaptureError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def _beside(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


families = _beside("families")
spies = _beside("spies")
PAGE = Path(__file__).parents[4] / "docs" / "adapters.md"
ROWS, ROW_TOKENS = 2, 12


class Row(NamedTuple):
    """What the table says of a family."""

    family: str
    built: str
    routers: str
    how: str = "refused"
    shape: str = ""
    scores: str = ""
    ids_from: str = ""
    gates: str = ""
    seen: str = ""


def step(model):
    """One forward and backward, in training mode: the loss and all gradients."""
    torch.manual_seed(1)
    model.zero_grad()
    tokens = torch.randint(3, 60, (ROWS, ROW_TOKENS))
    output = model(tokens)
    output = output.logits if "logits" in output else output.last_hidden_state
    loss = output.float().square().mean()
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


@cache
def checked(family):
    """A family built, captured and checked: its row of the table."""
    model = families.built(family)
    class_name = type(model).__name__
    try:
        sites = find_routers(model)
    except CaptureError as refusal:
        routers = [type(m).__name__ for m in model.modules() if "Router" in type(m).__name__]
        return Row(family, class_name, routers[0], seen=str(refusal))
    bare_loss, bare_grads = step(model)
    readings, spied = captured(model, sites)
    check_counts(sites, readings)
    for site in sites:
        spied[site.name](readings[site.name])
    loss, grads = step_with_op(model, sites)
    assert torch.equal(bare_loss, loss), "capture changed the loss"
    assert bare_grads.keys() == grads.keys()
    assert all(torch.equal(bare_grads[n], grads[n]) for n in grads), "capture changed a gradient"
    return describe(family, class_name, model, sites, readings)


def captured(model, sites):
    """What each site showed in one forward, and what was seen of it elsewhere."""
    readings = {site.name: [] for site in sites}
    spied = {site.name: spies.on(model, site) for site in sites}
    handles = [h for site in sites for h in site.attach(readings[site.name].append)]
    step(model)
    for handle in handles:
        handle.remove()
    assert {len(shown) for shown in readings.values()} == {1}, "shown once a forward"
    return {name: shown[0] for name, shown in readings.items()}, spied


def check_counts(sites, readings):
    tokens = ROWS * ROW_TOKENS
    for site in sites:
        logits_TE, ids_TK, gates_TK = readings[site.name]
        assert logits_TE.shape == (tokens, site.num_experts)
        assert ids_TK.shape == gates_TK.shape == (tokens, site.experts_per_token)
        assert not any(t.requires_grad for t in readings[site.name])
        ids_TK = ids_TK[(ids_TK >= 0).all(-1)]
        assert ids_TK.max() < site.num_experts
        assert all(len(set(row)) == len(row) for row in ids_TK.tolist()), "an expert chosen twice"


def step_with_op(model, sites):
    """A step with the real op in the hooks: every layer counts tokens x k, dropped ones aside."""
    sums = Accumulators(Table(len(sites), 1, sites[0].num_experts), torch.device("cpu"))
    sums.switch(active=True)
    none = torch.empty(0, dtype=torch.int64)
    dropped = [0] * len(sites)

    def show_at(place, site):
        def show(reading):
            dropped[place] += int((reading.ids_TK < 0).sum())
            route_stats(
                *reading, none, none.bool(), int(site.scores), len(sites), place, 1, sums.flags,
                sums.table, sums.slow,
            )  # fmt: skip

        return show

    handles = [h for place, s in enumerate(sites) for h in s.attach(show_at(place, s))]
    result = step(model)
    for handle in handles:
        handle.remove()
    counts_LDE = sums.layout.parts(sums.table)[0]
    expected = ROWS * ROW_TOKENS * sites[0].experts_per_token
    assert (counts_LDE.sum((1, 2)) + torch.tensor(dropped)).tolist() == [expected] * len(sites)
    return result


def describe(family, class_name, model, sites, readings):
    modules = dict(model.named_modules())
    meanings = [meaning_of(s.module, modules[parent(s.name)], 0) for s in sites]
    sums_T = torch.cat([readings[s.name].gates_TK.float().sum(-1) for s in sites])
    alike = torch.allclose(sums_T, sums_T[0].expand(len(sums_T)), atol=1e-3)
    names = dict.fromkeys(type(s.module).__name__ for s in sites)
    holders = [m for m in model.modules() if named(m, WITHIN)]
    by_name = holders or any(named(s.module, EXCEPTIONS) for s in sites)
    kinds = dict.fromkeys(s.scores.name for s in sites)
    return Row(
        family,
        class_name,
        ", ".join(names),
        "by name" if by_name else "uniform",
        f"{sites[0].experts_per_token} of {sites[0].num_experts}",
        ", ".join(kinds),
        "; ".join(dict.fromkeys(m.ids_from for m in meanings)),
        f"{sums_T[0].item():.3g}" if alike else "varies",
        spies.words(sites[0]),
    )


def test_every_family_of_the_library_is_captured_or_has_its_reason():
    known = set(families.FAMILIES) | set(families.NO_ROUTER)
    missing = families.in_library() - known
    assert not missing, f"build {sorted(missing)} in families.py, or say why not"
    assert not known - families.in_library(), "no longer in the library"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_is_captured_exactly_and_its_training_stays_bit_identical(family):
    row = checked(family)
    assert (row.how == "refused") == (family in {"nllb_moe"}), row.seen


def test_the_table_in_the_docs_is_what_this_run_gives():
    rows = [checked(family) for family in families.FAMILIES]
    start, end = "<!-- families -->\n", "<!-- /families -->"
    before, rest = PAGE.read_text().split(start)
    old, after = rest.split(end)
    new = table(rows)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(before + start + new + end + after)
        return
    assert old == new, (
        "write it anew: UPDATE_DOCS=1 python -m pytest tests/workbench/capture/adapters -k table"
    )


def table(rows):
    import transformers

    taken = [r for r in rows if r.how != "refused"]
    uniform = sum(r.how == "uniform" for r in taken)
    lines = [
        f"transformers {transformers.__version__}: {len(rows) + len(families.NO_ROUTER)} families; "
        f"{uniform} captured by the uniform mechanism, {len(taken) - uniform} by name, "
        f"{len(rows) - len(taken) + len(families.NO_ROUTER)} not.",
        "",
        "| family | built as | router | how | k of experts | scores | ids and gates from "
        "| gates sum to | ids checked against |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in taken]
    lines += ["", "Not captured:", "", "| family | reason |", "|---|---|"]
    lines += [f"| {row.family} | {row.seen} |" for row in rows if row.how == "refused"]
    lines += [f"| {family} | {reason} |" for family, reason in families.NO_ROUTER.items()]
    return "\n".join(lines) + "\n"
