"""A small store in which every group is recorded, and every number agrees with the others."""

from __future__ import annotations

import numpy as np

from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore
from workbench.testing import PlantedSkill, activations_record, evaluations_record, router_record

STEPS, LAYERS, EXPERTS, K = 120, 2, 8, 2
ROUTER = router_record(steps=STEPS, layers=LAYERS, experts=EXPERTS, k=K, tokens=64, seed=4)
EVALUATIONS = evaluations_record(
    {"code/add": PlantedSkill("jump", at=30), "logic/chain": PlantedSkill("never")},
    checkpoints=[40, 80, 120], items={"code/add": 10, "logic/chain": 6},
)  # fmt: skip
ACTIVATIONS = activations_record(
    checkpoints=4, every=40, tokens=16, layers=LAYERS, experts=EXPERTS, k=K
).isel(checkpoint=slice(1, None))


def plain(ds, dim, stretch):
    """Rows of a dataset along `dim`, as a writer takes them."""
    labels = {"step": ("step", "tokens_seen"), "sample": ("sample",)}.get(dim, (dim, "tokens_seen"))
    part = ds.sel({dim: stretch})
    rows = {str(n): v.values for n, v in part.data_vars.items() if v.dims[0] == dim}
    rows |= {n: part[n].values for n in labels if n in part.coords and n != "tokens_seen"}
    return rows | ({"tokens_seen": part.tokens_seen.values} if dim == "checkpoint" else {})


def interiors_of(step, rows=6):
    bounds = np.linspace(0, rows, LAYERS * EXPERTS + 1).astype("int64")
    offsets = np.stack([bounds[i * EXPERTS : (i + 1) * EXPERTS + 1] for i in range(LAYERS)])
    return {
        "checkpoint": np.array([step]), "tokens_seen": np.array([64 * step]),
        "offsets": offsets[None], "values": np.full((rows, 3), step, "float32"),
        "token": np.arange(rows, dtype="int32"), "gate": np.full(rows, 0.5, "float32"),
    }  # fmt: skip


def append(w, first, last):
    stretch = slice(first, last)
    steps = np.arange(first, last + 1)
    w.append("router", plain(ROUTER, "step", stretch) | plain(ROUTER, "sample", stretch))
    w.append("train", {
        "step": steps, "tokens_seen": 64 * steps, "loss": np.full(len(steps), 3, "float32"),
        "utc": 1.7e9 + steps,
    })  # fmt: skip
    ids = np.tile(np.array([[0, 1], [7, -1]], "int16"), (len(steps), 1, 1))
    w.append("traces", {
        "step": steps, "expert_ids": ids, "gates": np.full(ids.shape, 0.5, "float32"),
        "token": steps.astype("int32"), "position": steps.astype("int32"), "document": steps,
        "domain": np.full(len(steps), -1, "int16"),
    })  # fmt: skip
    w.append("interiors", interiors_of(last))
    for group, ds in (("evaluations", EVALUATIONS), ("activations", ACTIVATIONS)):
        w.append(group, plain(ds, "checkpoint", slice(last, last)))


def make(path):
    """Main 1 to 120 with checkpoints at 40, 80 and 120; an arm from 40 to 80; 100 to 120 of an
    earlier line set aside."""
    layout = Layout(
        layers=(0, 1), experts=EXPERTS, k=K, domains=tuple(ROUTER.domain.values.tolist()),
        tasks=(Task("code/add", 0.1, 10), Task("logic/chain", 0.1, 6)),
        tokens=ProbeTokens(tuple(range(16)), ("prose",) * 16),
    )  # fmt: skip
    store = RunStore.create(path, layout, {"drops": False})
    with store.writer("main") as w:
        for last in (40, 80, 120):
            append(w, last - 39, last)
            w.commit("forty steps")
            w.tag_checkpoint(last)
    store.fork("arm", "main", at_step=40)
    with store.writer("arm") as w:
        append(w, 41, 80)
        w.commit("forty other steps")
        w.tag_checkpoint(80)
    store.rollback("main", 80)
    with store.writer("main") as w:
        append(w, 81, 120)
    return store
