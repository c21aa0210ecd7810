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
# # Where did the tokens go?
#
# A router sends every token to a few experts of each layer. Did it use them all? Did it settle, and
# when? This is a first look at a recorded run.
#
# It reads the run that the variable `WORKBENCH_RUN` names, else `runs/demo` (made by `make demo`),
# else a synthetic run that never trained, in which the answers are known.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import probes
import workbench as wb

here = Path.cwd()
demo = next((p / "runs/demo" for p in (here, *here.parents) if (p / "runs/demo").exists()), None)
path = os.environ.get("WORKBENCH_RUN") or demo or wb.testing.planted_run(mkdtemp())
run = wb.open_run(path)
if "continue" in run.branches:
    run = run.arm("continue")  # the trunk and, after its fork, more of the same
run

# %% [markdown]
# The card shows what is known of the run: its clocks (steps, tokens, UTC), its branches, each from
# where it forked, and what was recorded; open a line to see variables with unit and meaning.
# Nothing has been read yet: datasets are lazy, and come as labelled arrays.

# %%
run.router

# %% [markdown]
# ## Load
#
# `assignments` counts, exactly, the tokens that each expert of each layer got in each step. Divided
# by the layer's total that is the *load*; fair is 1/E. In the figure white is fair, red is
# overused, blue starves.

# %%
load = probes.expert_load(run)
marks = wb.figures.marks_of(run)
wb.figures.expert_load(load, marks=marks)

# %% [markdown]
# Which expert was used most, and which least, over the last tenth of the steps?

# %%
experts = load.sizes["expert"]
late = load.isel(step=slice(-max(1, load.sizes["step"] // 10), None)).mean("step") * experts
for layer in late.layer.values:
    one = late.sel(layer=layer)
    most, least = int(one.idxmax()), int(one.idxmin())
    print(
        f"layer {layer}: expert {most} at {float(one.max()):.2f} times its fair share, "
        f"expert {least} at {float(one.min()):.2f}"
    )

# %% [markdown]
# It misleads in one way: load says how many tokens an expert got, not whether it did anything for
# them. Whether it is *needed* is the question of the third notebook.
#
# ## Is that uneven?
#
# Even a fair router deals unevenly at random. Its coefficient of variation in a single step is
# known from the number of tokens alone, so we can say how much of what we see it explains.

# %%
balance = probes.balance(run)
seen = balance["cv"].isel(step=slice(-100, None)).median().item()
print(f"coefficient of variation: {seen:.3f} seen, {balance.attrs['cv_at_random']:.3f} at random")
wb.figures.balance(balance, marks=marks)

# %% [markdown]
# ## When did the routing settle?
#
# The same fixed tokens were routed at every checkpoint. *Saturation* is the agreement of each
# checkpoint's choices with the final ones; kappa takes off what two unrelated routers with the same
# loads would share. The last point agrees with itself, so it says nothing; and a run that stopped
# earlier would have had another "final".

# %%
settled = probes.saturation(run)
assert np.allclose(settled["kappa"].isel(checkpoint=-1), 1)
wb.figures.saturation(settled, marks=marks)

# %%
half = settled["kappa"].isel(checkpoint=settled.sizes["checkpoint"] // 2)
print(f"half-way, at step {int(half.checkpoint)}, kappa was", half.values.round(2))

# %% [markdown]
# ## Would we have seen it?
#
# A look at a run is worth as much as what it would not have missed. So here is a record in which
# one expert dies at a step that we choose. The same call has to find it, and no other.

# %%
death = wb.testing.DeadExpert(layer=1, expert=3, step=40)
planted = probes.expert_load(wb.testing.router_record(steps=60, dead=[death]))
silent = (planted == 0).isel(step=slice(None, None, -1)).cumprod("step").sum("step").values
layer, expert = np.unravel_index(silent.argmax(), silent.shape)
first = planted.sizes["step"] - silent[layer, expert] + 1
print(f"layer {layer}, expert {expert} receives nothing from step {first} on")
assert (layer, expert, first) == (death.layer, death.expert, death.step)
assert (silent > 0).sum() == 1

# %% [markdown]
# ## The number to trust
#
# Everything above rests on the counts. With k experts a token, each layer's counts must add up to
# tokens x k, in every step, to the last token.

# %%
counted = run.router["assignments"].sum("expert")
expected = run.router["tokens"] * run.router.attrs["k"]
wrong = int((counted != expected).sum())
print(f"{int(counted.sum()):,} assignments in {counted.sizes['step']:,} steps; {wrong} wrong sums")
assert wrong == 0
assert np.allclose(load.sum("expert"), 1)
