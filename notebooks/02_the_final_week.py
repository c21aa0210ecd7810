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
# # What did the final week buy, and why?
#
# Near the end of a training some compute is left. Carry on as before, or change the data? Here
# both were done, from the same checkpoint, with the same number of steps: two *arms* of one run.
# What did the change buy, when did it arrive, and which part of the model did it come with?
#
# It reads the run that the variable `WORKBENCH_RUN` names, else `runs/demo` (made by `make demo`),
# else a synthetic run that never trained. For a run of minutes a "week" is stated as what it is: a
# share of the tokens.

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
arms = {name: run.arm(name) for name in run.branches if run.arm(name).parent}
baseline, changed = list(arms)[:2]
arms[changed]

# %% [markdown]
# ## The window
#
# The final stretch is what lies after the fork. Which share of the training is that?

# %%
fork = arms[changed].fork_step
week = arms[changed].window(start=fork)
tokens = arms[changed].clock.tokens
share = 1 - tokens[arms[changed].clock.step <= fork][-1] / tokens[-1]
print(f"{share:.0%} of the training tokens")
assert 0 < share < 1
week

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
arrived = {}
for name, found in onsets.items():
    arrived[name] = [o for o in found.values() if o.reached and o.step > fork]
    print(f"{name}: {len(arrived[name])} arrived in the final stretch")
    for o in arrived[name]:
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
# The intervals say how far other *items* would change the picture. What another *seed* would do,
# only another seed can say.
#
# The greatest difference, taken by hand from the answers themselves:

# %%
last = gap["accuracy"].isel(checkpoint=-1)
task = str(last.task.values[np.abs(last.values).argmax()])
right = {}
for name in (baseline, changed):
    answers = arms[name].evaluations["correct"].sel(task=task).isel(checkpoint=-1)
    right[name] = int((answers == 1).sum()) / int((answers >= 0).sum())
print(f"{task}: {right[baseline]:.2f} under {baseline}, {right[changed]:.2f} under {changed}")
assert abs(right[changed] - right[baseline] - last.sel(task=task).item()) < 1e-9

# %% [markdown]
# ## Why: which part did it come with?
#
# Take the model at the fork and put parts of the final one into it: the routers, the experts, the
# attention, in every combination. What each part adds, over all combinations, is its share of what
# was gained (its Shapley value); the shares sum to the whole gain.
#
# It misleads where the two models lie so far apart that no mixture of them works: the gain is then
# shared out evenly for want of anything better.

# %%
saved = arms[changed].checkpoints
if len(saved):
    # Kept in the run: asked again, it is one read.
    asked = {"transplant": {"task": task}}
    found = probes.examine(saved[-1:], "transplant", params=asked, against=fork)["transplant"]
    parts = found.squeeze()
    print(parts["shapley"].to_series().round(2).to_dict())
    assert np.isclose(parts["shapley"].sum(), parts["gap"], atol=1e-6)
else:
    print("this run has no weights: the parts are those of a hand-built model with a skill")
    skilled = wb.testing.planted_model("both")
    exam = probes.Exam(tokens=skilled.tokens, domains=skilled.domains, items=skilled.items)
    ends = [probes.Subject(m, exam, step=s) for s, m in enumerate([skilled.before, skilled.after])]
    parts = probes.transplant(*ends, skilled.tasks[0])
wb.figures.transplant(parts)

# %% [markdown]
# ## Why: what moved before it?
#
# Among all that was captured at every step (loads, entropies, margins), did anything move shortly
# before the capability came? Only what moved *after* the fork counts: the new data moves everything
# at the fork itself, and so it would lead every later onset.
#
# One onset in one run is one event. A signal that leads it is a suspect, not a cause.

# %%
if arrived[changed]:
    about = max(arrived[changed], key=lambda o: o.step).task
    leads = probes.lead_lag(arms[changed], about, start=fork)
    leads = leads.assign_attrs(run=run.name, branch=changed)
else:
    print("nothing arrived after the fork: signals and a skill with a known lead instead")
    skill = wb.testing.PlantedSkill("jump", at=500)
    ahead, still = wb.testing.PlantedSignal(lead=40, height=3), wb.testing.PlantedSignal()
    record = wb.testing.evaluations_record({"code/add": skill}, checkpoints=56, every=20)
    signals = wb.testing.signals_record({"ahead": ahead, "still": still}, skill)
    leads = probes.lead_lag(record, "code/add", signals=signals)
wb.figures.leads(leads)

# %% [markdown]
# ## The number to trust
#
# Would the transplant have told the truth? Here is a hand-built model whose skill needs a router
# that learned to choose an expert *and* that expert: neither does anything alone. So each must have
# half of the gain, and everything else, though it changed as well, nothing.

# %%
planted = wb.testing.planted_model("both")
exam = probes.Exam(tokens=planted.tokens, domains=planted.domains, items=planted.items)
before, after = (probes.Subject(model, exam) for model in (planted.before, planted.after))
shares = probes.transplant(before, after, planted.tasks[0])
shares = shares["shapley"] / shares["gap"]
print({str(part): round(share, 3) for part, share in shares.to_series().items()})
for part, share in shares.to_series().items():
    assert abs(share - planted.shares.get(part, 0)) < 1e-6
