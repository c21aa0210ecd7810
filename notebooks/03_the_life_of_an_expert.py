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
# # What becomes of one expert?
#
# Experts begin alike. Later one may take the code, another next to nothing. We pick the expert that
# stands out most and follow it: what it is sent, since when, by which tokens, and whether the model
# would miss it.
#
# It reads the run that the variable `WORKBENCH_RUN` names, else `runs/demo` (made by `make demo`),
# else a synthetic run that never trained, in which the answers are known.

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
marks = wb.figures.marks_of(run)
run

# %% [markdown]
# ## Which one?
#
# Of every domain's tokens an expert takes a share. Divided by its share of all tokens that is its
# *preference*: one where the domain makes no difference to it. We take the expert with the
# strongest preference at the end.

# %%
taken = probes.domains(run, deals=0)
prefers = (taken["share"] / taken["load"].where(taken["load"] > 0)).rename("preference")
strongest = prefers.isel(step=-1).stack(place=("layer", "domain", "expert")).idxmax("place").item()
layer, domain, expert = strongest
print(f"layer {layer}, expert {expert}: {domain}, {float(prefers.isel(step=-1).max()):.1f} times")

# %%
wb.figures.domains(taken, layer=layer)

# %% [markdown]
# Red cells are preferences, blue ones are avoided domains. The figure misleads where a domain is
# rare: its share is then of few tokens. These counts are of all training tokens, and exact.
#
# ## Its youth
#
# Was it always so?

# %%
own = prefers.sel(layer=layer, expert=expert, drop=True).sel(domain=domain, drop=True)
note = {"units": "1", "long_name": f"preference for {domain}", "chance_level": 1.0}
life = xr.Dataset({"preference": own.assign_attrs(note)}, attrs={"run": run.name})
wb.figures.probe_result(life, name=f"preference of expert {expert}, layer {layer}", marks=marks)

# %%
peak = int(own.idxmax("step"))
above = own.where(own > 1.5, drop=True)
since = int(above.step[0]) if above.size else None
print(f"strongest around step {peak}; first over 1.5 in the window that ends at step {since}")

# %% [markdown]
# ## Its load
#
# A preference costs others nothing. Load does: what one expert is sent, its neighbours are not.

# %%
load = probes.expert_load(run)
wb.figures.expert_load(load.sel(layer=[layer]), marks=marks)

# %%
ends = load.sel(layer=layer, expert=expert) * load.sizes["expert"]
tenth = max(1, ends.sizes["step"] // 10)
print(
    f"its load was {float(ends[:tenth].mean()):.2f} of the fair share in the first tenth of the "
    f"steps, {float(ends[-tenth:].mean()):.2f} in the last"
)

# %% [markdown]
# ## Its words
#
# Perhaps it does not know the domain at all, only a few tokens that are frequent there. On the
# fixed tokens, how surely does each token id bring it in, whatever the text around it?

# %%
words = probes.vocabulary(run)
text = str
if (run.path / "tokenizer.json").exists():
    from tokenizers import Tokenizer

    text = Tokenizer.from_file(str(run.path / "tokenizer.json"))
wb.figures.vocabulary(words, layer=layer, expert=expert, tokens=text)

# %%
kappa = words.isel(checkpoint=-1).sel(layer=layer)
print(
    f"kappa {float(kappa.kappa):.2f} [{float(kappa.kappa_low):.2f}, {float(kappa.kappa_high):.2f}]:"
    f" 0, ids say nothing of the experts chosen; 1, they say all"
)

# %% [markdown]
# ## Would it be missed?
#
# All that was association. To know what an expert is needed for, take it away: its output becomes
# zero, and every task is asked again. It misleads where experts make up for one another: two that
# know the same are both missed by nobody.

# %%
saved = run.checkpoints
if saved:
    third = (len(saved) - 1) / 3
    some = saved.chosen(round(third * i) for i in (1, 2, 3))
    # Kept in the run: asked again, it is one read.
    lost = probes.examine(some, "lesion", params={"lesion": {"fixed_tokens": False}})["lesion"]
else:
    print("this run has no weights: a hand-built model instead, before and after it learned")
    skilled = wb.testing.planted_model()
    exam = probes.Exam(tokens=skilled.tokens, domains=skilled.domains, items=skilled.items)
    both = [probes.lesion(probes.Subject(m, exam)) for m in (skilled.before, skilled.after)]
    lost = xr.concat(both, xr.Variable("checkpoint", [100, 200]))
wb.figures.lesions(lost)

# %%
if saved:
    q = lost["drop_q"].isel(checkpoint=-1).sel(layer=layer, expert=expert)
    clear = [str(task) for task in q.task.values[(q <= 0.05).values]]
    print(
        f"without expert {expert} of layer {layer}, clearly worse:", ", ".join(clear) or "no task"
    )

# %% [markdown]
# An expert may prefer a domain strongly and be missed by none of its tasks. Preference says where
# tokens went; only the lesion says what they got there.
#
# ## The number to trust
#
# Would a lesion find the expert that does the work? Here is a hand-built model in which one skill
# lives in one expert of one layer. To take that one away must cost most of what the model can do,
# and to take away any other must cost nothing at all.

# %%
home = (2, 4)
planted = wb.testing.planted_model(homes={"planted/skill": home})
exam = probes.Exam(tokens=planted.tokens, domains=planted.domains, items=planted.items)
drop = probes.lesion(probes.Subject(planted.after, exam))["drop"].sel(task="planted/skill")
found = np.unravel_index(int(drop.values.argmax()), drop.shape)
others = drop.values.copy()
others[found] = 0
print(f"home {home}, found {tuple(map(int, found))}; it costs {float(drop.max()):.2f} of accuracy")
assert found == home
assert drop.max() > 0.5
assert (others == 0).all()
