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
# # What did the final week buy?
#
# Near the end of a training some compute is left. Carry on as before, or change the data? Here
# both were done, from the same checkpoint, with the same number of steps: two *arms* of one run.
# What did the change buy, when did it arrive, and what did it cost?
#
# It runs on `runs/demo` (made by `make demo`), or on the run that the environment variable
# `WORKBENCH_RUN` names. For a run of minutes a "week" is stated as what it is: a share of the
# tokens.

# %%
import os
from pathlib import Path

import numpy as np

import probes
import workbench as wb

here = next((p for p in ("runs/demo", "../runs/demo") if Path(p).exists()), "runs/demo")
run = wb.open_run(os.environ.get("WORKBENCH_RUN", here))
arms = {name: run.arm(name) for name in run.branches if run.arm(name).parent}
for name, arm in arms.items():
    end = int(arm.clock.step[-1])
    print(f"{name}: from {arm.parent} at step {arm.fork_step:,} to step {end:,}")

# %% [markdown]
# ## The window
#
# The final stretch is what lies after the fork. Which share of the training is that?

# %%
baseline, changed = list(arms)[:2]
fork = arms[changed].fork_step
week = arms[changed].window(start=fork)
tokens = arms[changed].clock.tokens
share = 1 - tokens[arms[changed].clock.step <= fork][-1] / tokens[-1]
print(week)
print(f"{share:.0%} of the training tokens")

# %% [markdown]
# ## What was different
#
# The routers counted, for every domain, the tokens that they saw. That is the data mix as it was,
# not as it was planned.

# %%
for name, arm in arms.items():
    seen = arm.window(start=fork).router["domain_assignments"].isel(layer=0).sum(["step", "expert"])
    mix = (seen / seen.sum()).to_series().sort_values(ascending=False)
    print(name, "·", ", ".join(f"{domain} {part:.0%}" for domain, part in mix.head(5).items()))

# %% [markdown]
# ## When capabilities came
#
# Accuracy is a threshold on something smoother, and a threshold makes jumps. So every task is shown
# twice: accuracy above, the log-probability of the right answer below. The diamond is the onset:
# half-way from chance to perfect, to stay.

# %%
skills = {name: probes.capability(arm) for name, arm in arms.items()}
onsets = {name: probes.onsets(skill) for name, skill in skills.items()}
marks = wb.figures.marks_of(run)
wb.figures.emergence(skills, onsets, marks=marks)

# %%
for name, found in onsets.items():
    late = [o for o in found.values() if o.reached and o.step > fork]
    print(f"{name}: {len(late)} arrived in the final stretch")
    for o in late:
        print("   ", o)

# %% [markdown]
# ## What the change bought, and what it cost
#
# Both arms answered the same items, so they are compared item by item. Full dots survive the
# correction for looking at many tasks at once.

# %%
gap = probes.arm_difference(arms[baseline], arms[changed])
wb.figures.arms(gap)

# %% [markdown]
# One seed, a few dozen items a task: the intervals say how far other *items* would change the
# picture. What another *seed* would do, only another seed can say.
#
# ## Did the routing follow?

# %%
settled = {name: probes.saturation(arm) for name, arm in arms.items()}
wb.figures.saturation(settled, marks=marks)

# %% [markdown]
# ## The number to trust
#
# The greatest difference, taken by hand from the answers themselves:

# %%
last = gap["accuracy"].isel(checkpoint=-1)
task = str(last.task.values[np.abs(last.values).argmax()])
right = {}
for name in (baseline, changed):
    answers = arms[name].evaluations["correct"].sel(task=task).isel(checkpoint=-1)
    right[name] = int((answers == 1).sum()) / int((answers >= 0).sum())
by_hand = right[changed] - right[baseline]
print(f"{task}: {right[baseline]:.2f} under {baseline}, {right[changed]:.2f} under {changed}")
assert abs(by_hand - last.sel(task=task).item()) < 1e-9
assert 0 < share < 1
