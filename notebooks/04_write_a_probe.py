# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How much of the load changes hands?
#
# No probe of the workbench answers that, so we write one: a function of some twenty lines, run over
# a window, kept in the run, drawn, and then tried on records in which the answer is known.
#
# It reads the run that the variable `WORKBENCH_RUN` names, else `runs/demo` (made by `make demo`),
# else a synthetic run that never trained. What the probe finds is kept in that run.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import xarray as xr

import probes
import workbench as wb

here = Path.cwd()
demo = next((p / "runs/demo" for p in (here, *here.parents) if (p / "runs/demo").exists()), None)
path = os.environ.get("WORKBENCH_RUN") or demo or wb.testing.planted_run(mkdtemp())
run = wb.open_run(path)
run = run.arm(run.branches[-1])
print(f"run {run.name!r}, branch {run.branch!r}, {run.step_count:,} steps")

# %% [markdown]
# ## The probe
#
# Cut the steps into stretches. From one to the next some experts gain load and others lose as much;
# what changed hands is half the sum of all changes. Nothing is said by such a number alone: random
# deals of tokens move some load as well. So the probe says beside it what that would be, from the
# number of tokens: a chance level.
#
# `@probe` gives it a name and a question. It takes the run (or a window, or a dataset) and returns
# a dataset whose variables say their unit, what they mean, and what their interval is.

# %%
from probes.registry import probe
from probes.source import group_of


@probe("load-turnover", question="What share of the load changes hands?", reads="record")
def load_turnover(source, stretches: int = 10):
    """Half the sum of changes of load between neighbouring stretches: (step, layer), 0 to 1."""
    router = group_of(source, "router", ["assignments", "tokens"])
    each = max(1, router.sizes["step"] // stretches)
    cut = router[["assignments", "tokens"]].coarsen(step=each, boundary="trim", coord_func="max")
    counts, tokens = (cut.sum()[name] for name in ("assignments", "tokens"))
    load = counts / counts.sum("expert")
    turnover = abs(load.diff("step")).sum("expert") / 2
    # A token goes to an expert with chance p, so its count is binomial; half the mean absolute
    # difference of two such loads, summed over experts.
    p = counts / tokens
    k = p.sum("expert")
    chance = (np.sqrt(p * (1 - p) / (np.pi * tokens)) / k).sum("expert").sel(step=turnover.step)
    exact = {"units": "1", "interval": "none: exact counts over every training token"}
    turnover.attrs = exact | {
        "long_name": "share of load that changed hands",
        "chance_level": float(chance.mean()),
    }
    chance.attrs = exact | {"long_name": "the same of random deals, in the mean"}
    return xr.Dataset({"turnover": turnover, "by_chance": chance})


# %% [markdown]
# ## Over a window, and kept
#
# `examine` runs it by its name like any other probe. The result lies in the run, under the window,
# the parameters and the text of the function: to ask again is to read.

# %%
week = run.window(last=0.5)
found = probes.examine(week, "load-turnover")["load-turnover"]
kept = [stored for stored in run.results.list() if stored.probe == "load-turnover"]
assert kept
xr.testing.assert_identical(probes.examine(week, "load-turnover")["load-turnover"], found)
print(f"kept {len(kept)} time(s), steps {week.start + 1:,} to {week.stop:,}")
found

# %% [markdown]
# ## Drawn
#
# A result that carries its units and meanings needs no drawing code; dotted is the chance level.

# %%
wb.figures.probe_result(found[["turnover"]], name="load-turnover", marks=wb.figures.marks_of(run))

# %%
ratio = found["turnover"] / found["by_chance"]
for layer in ratio.layer.values:
    one = ratio.sel(layer=layer)
    print(
        f"layer {layer}: {float(one.max()):.1f} times chance at most, around step "
        f"{int(one.idxmax('step'))}; {float(one[-1]):.1f} at the end"
    )

# %% [markdown]
# It misleads in two ways. Load also moves when the *data* does, with no router changed
# (`probes.drift` tells the two apart). And a swap between two experts that do the same work counts
# like any other.
#
# ## Does it tell the truth?
#
# First a record of a fair router, where nothing moves: what the probe sees must be what chance
# does.

# %%
still = load_turnover(wb.testing.router_record(steps=200, tokens=256, experts=8, k=2, seed=1))
seen, chance = float(still["turnover"].mean()), float(still["by_chance"].mean())
print(f"nothing moves: {seen:.4f} seen, {chance:.4f} by chance")
assert abs(seen / chance - 1) < 0.15

# %% [markdown]
# ## The number to trust
#
# Then a record written by hand: four experts, and half-way the first hands all it has to the
# second. A quarter of the load changes hands there, and nothing anywhere else.

# %%
counts = np.full((40, 1, 4), 25)
counts[20:, 0, 0], counts[20:, 0, 1] = 0, 50
planted = xr.Dataset(
    {"assignments": (("step", "layer", "expert"), counts), "tokens": ("step", np.full(40, 100))},
    coords={"step": np.arange(1, 41), "layer": [0], "expert": range(4)},
)
moved = load_turnover(planted)["turnover"].isel(layer=0)
print({int(step): float(share) for step, share in moved.to_series().items()})
assert int(moved.idxmax("step")) == 24  # the end of the stretch after step 20
assert moved.max() == 0.25
assert int((moved > 0).sum()) == 1
