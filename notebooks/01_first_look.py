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
# when? This is a first look at a recorded run: ten minutes to read, under a minute to execute.
#
# It runs on `runs/demo` (made by `make demo`), or on the run that the environment variable
# `WORKBENCH_RUN` names.

# %%
import os
from pathlib import Path

import numpy as np

import probes
import workbench as wb

here = next((p for p in ("runs/demo", "../runs/demo") if Path(p).exists()), "runs/demo")
run = wb.open_run(os.environ.get("WORKBENCH_RUN", here))
if "continue" in run.branches:
    run = run.arm("continue")  # the trunk and, after its fork, more of the same
run

# %% [markdown]
# The run knows its clocks (steps, tokens, UTC), its branches and what was recorded of each. Nothing
# has been read yet: datasets are lazy, and come as labelled arrays.

# %%
run.router

# %% [markdown]
# ## Load
#
# `assignments` counts, exactly, the tokens that each expert of each layer got in each step. Divided
# by the layer's total that is the *load*; fair is 1/E. White is fair, red is overused, blue
# starves; both ends of the scale are a factor of two from fair.

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
# loads would share. The last point is 1 by definition.

# %%
settled = probes.saturation(run)
wb.figures.saturation(settled, marks=marks)

# %%
half = settled["kappa"].isel(checkpoint=settled.sizes["checkpoint"] // 2)
print(f"half-way, at step {int(half.checkpoint)}, kappa was", half.values.round(2))

# %% [markdown]
# ## The number to trust
#
# Everything above rests on the counts. With k experts a token, each layer's counts must add up to
# tokens x k, in every step, to the last token. They do:

# %%
counted = run.router["assignments"].sum("expert")
expected = run.router["tokens"] * run.router.attrs["k"]
wrong = int((counted != expected).sum())
print(f"{int(counted.sum()):,} assignments in {counted.sizes['step']:,} steps; {wrong} wrong sums")
assert wrong == 0
assert np.allclose(load.sum("expert"), 1)
