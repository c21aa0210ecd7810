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
# # What do the routers of my own model do?
#
# Here is a small mixture of experts in plain torch, trained on text in two made-up languages. Three
# lines record it; then we read what its router learned, and check every count by hand.
#
# It needs no run: it makes one, in a temporary folder.

# %%
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

import probes
import workbench as wb

LANGUAGES, WORDS, EXPERTS, K, STEPS = ("north", "south"), 32, 8, 2, 150
folder = Path(mkdtemp())

# %% [markdown]
# ## A model
#
# Its router returns what it chose: scores, expert ids and weights. That is all that a recorder has
# to be told of a model it does not know.

# %%
# Shapes: T tokens, D width, E experts, K experts of a token.


class Router(nn.Linear):
    def forward(self, x_TD):
        logits_TE = super().forward(x_TD)
        gates_TK, ids_TK = logits_TE.softmax(-1).topk(K)
        return logits_TE, ids_TK, gates_TK / gates_TK.sum(-1, keepdim=True)


class TinyMoE(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed = nn.Embedding(2 * WORDS, width)
        self.router = Router(width, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(EXPERTS))
        self.head = nn.Linear(width, 2 * WORDS)

    def forward(self, words):
        x_TD = self.embed(words).flatten(0, 1)
        _, ids_TK, gates_TK = self.router(x_TD)
        every_TED = torch.stack([expert(x_TD) for expert in self.experts], dim=1)
        index_TKD = ids_TK[..., None].expand(*ids_TK.shape, x_TD.shape[-1])
        mixed_TD = (gates_TK[..., None] * every_TED.gather(1, index_TKD)).sum(1)
        return self.head(x_TD + mixed_TD.tanh()).view(*words.shape, -1)


def batch(step):
    """Rows of words, and the language of each row: north counts up, south counts down."""
    drawn = torch.Generator().manual_seed(step)
    language = torch.randint(0, 2, (16,), generator=drawn)
    start = torch.randint(0, WORDS, (16, 1), generator=drawn)
    direction = 1 - 2 * language[:, None]
    words = (start + direction * torch.arange(17)) % WORDS + WORDS * language[:, None]
    return words, language


# %%
def begin():
    """A model, always the same, and its optimizer."""
    torch.manual_seed(0)
    model = TinyMoE()
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


def train_step(model, optimizer, words):
    logits = model(words[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# %% [markdown]
# ## Three lines
#
# The recorder is made before the first forward, a step is wrapped, and at the end it is closed.
# `routers=` is for models of one's own; the routers of Hugging Face's models and of this project's
# it finds by itself. `domains=` is optional: with it, counts are kept by language.
#
# Beside it a plain hook counts what the router chose. It is here to check the recorder, not to
# help it.

# %%
model, optimizer = begin()
routers = wb.Generic(modules=Router, read=lambda out: out, num_experts=EXPERTS, experts_per_token=K)
losses, by_hand = [], []

recorder = wb.Recorder(model, folder / "mine", routers=routers, domains=LANGUAGES)  # one
model.router.register_forward_hook(
    lambda module, args, out: by_hand.append(torch.bincount(out[1].flatten(), minlength=EXPERTS))
)
for step in range(1, STEPS + 1):
    words, language = batch(step)
    labels = language[:, None].expand(-1, words.shape[1] - 1)
    with recorder.step(step, domains=labels):  # two
        losses.append(train_step(model, optimizer, words))
        recorder.log(loss=losses[-1])
recorder.close()  # three

print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last")
assert losses[-1] < losses[0] / 2

# %% [markdown]
# Did it disturb the training? Once more without it: the losses must be the same to the last bit.

# %%
alone, optimizer = begin()
assert losses == [train_step(alone, optimizer, batch(step)[0]) for step in range(1, STEPS + 1)]

# %% [markdown]
# ## Read it
#
# It is a run like any other.

# %%
run = wb.open_run(folder / "mine")
run

# %%
wb.figures.expert_load(probes.expert_load(run))

# %% [markdown]
# ## Did experts take sides?
#
# Nothing asked the router to tell the languages apart. In the figure red is an expert that takes
# more of a language than of all text. It misleads early in a training: an untrained router has
# preferences too, those of its random weights.

# %%
taken = probes.domains(run)
wb.figures.domains(taken)

# %%
ends = taken["information"].isel(step=[0, -1], layer=0).values
north = taken["share"].isel(step=-1, layer=0).sel(domain="north")
south = taken["share"].isel(step=-1, layer=0).sel(domain="south")
apart = float(abs(north - south).sum() / 2)
print(f"an expert told {ends[0]:.2f} bits of the language at first, {ends[1]:.2f} at the end")
print(f"{apart:.0%} of the assignments of one language go where the other's do not")

# %% [markdown]
# ## The number to trust
#
# Every count of the recorder against those of the plain hook: each step, each expert, to the last
# token.

# %%
recorded = torch.from_numpy(run.router["assignments"].isel(layer=0).values)
counted = torch.stack(by_hand)
print(f"{int(recorded.sum()):,} assignments; {int((recorded != counted).sum())} counts differ")
assert torch.equal(recorded, counted)
assert recorded.sum() == STEPS * words[:, 1:].numel() * K
