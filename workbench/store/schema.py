"""The record as data: every variable of a run's store with its dims, dtype, unit and meaning.

Needs   nothing: this is the table that writing and opening are checked against.
Yields  SCHEMA, group -> name -> Variable; COORDINATES, the labels stored beside them; GROWING, the
        dims that rows are appended along; `conform`, which names every departure at once.

Dims     step: one optimizer step. checkpoint: one saved checkpoint, labelled by its step. sample:
         one reading of a slow quantity. layer, expert, expert2: from 0. domain, task: by name.
         item: a task's question. token: a position in the fixed probe set. k: rank of a chosen
         expert, the most probable first. bin: of entropy / ln E. trace: one traced training token.
         row: one token in one expert's interior; bound: where an expert's rows begin, and the last
         one's end. trace and row are numbered from 0 and have no labels of their own.
Sites    The group activations holds one more variable for every recorded site of the model, under
         the site's own name: (checkpoint, token, ...). Their axes are learnt as they are recorded.
Sums     Counts are sums over every training token of the step (all micro-batches, all ranks), never
         means of means; padding and evaluation passes are left out. Float means are over the same
         tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from workbench.errors import SchemaError

VERSION = 2
"""Raised by one whenever a stored variable changes its meaning, dims or dtype, or what lies beside
it; migration.py says what each version added.
"""


@dataclass(frozen=True)
class Variable:
    """One stored variable: what its axes are, how it is held, its unit and what it says."""

    dims: tuple[str, ...]
    dtype: str
    units: str
    meaning: str
    widened_from: str = ""
    """Dtype in the model where the store has none such: bfloat16 is held, exactly, as float32."""

    @property
    def attributes(self) -> dict[str, str]:
        """What is written beside the array."""
        noted = {"units": self.units, "long_name": self.meaning}
        return noted | ({"widened_from": self.widened_from} if self.widened_from else {})


# fmt: off
# A table reads as a table: one variable, one entry.
ROUTER = {
    "tokens": Variable(
        ("step",), "int64", "tokens", "Training tokens that passed the routers in this step."
    ),
    "assignments": Variable(
        ("step", "layer", "expert"), "int64", "assignments",
        "Tokens sent to this expert; over experts they sum to tokens x k.",
    ),
    "gate_mass": Variable(
        ("step", "layer", "expert"), "float32", "tokens",
        "Sum over tokens of this expert's gate (after renormalisation), 0 where it was not chosen.",
    ),
    "prob_mass": Variable(
        ("step", "layer", "expert"), "float32", "tokens",
        "Sum over tokens of this expert's probability in the softmax over all experts.",
    ),
    "entropy": Variable(
        ("step", "layer"), "float32", "nats",
        "Entropy of the softmax over all experts, mean over tokens; at most ln E.",
    ),
    "margin": Variable(
        ("step", "layer"), "float32", "logits",
        "Lowest logit chosen less the highest left out, mean over tokens; below 0 where a bias or "
        "a limit on groups overrules the logits.",
    ),
    "z_squared": Variable(
        ("step", "layer"), "float32", "logits^2",
        "Square of logsumexp of the router logits, mean over tokens: the router z-loss; NaN where "
        "a router shows probabilities alone.",
    ),
    "topk_mass": Variable(
        ("step", "layer"), "float32", "1",
        "Probability that the softmax gives to the chosen experts together, mean over tokens.",
    ),
    "near_tie": Variable(
        ("step", "layer"), "float32", "1",
        "Share of tokens whose margin lies within 0.1 logits of 0: a small change reroutes them.",
    ),
    "domain_assignments": Variable(
        ("step", "layer", "domain", "expert"), "int64", "assignments",
        "Tokens of this domain sent to this expert; over domains they sum to `assignments`.",
    ),
    "coactivation": Variable(
        ("sample", "layer", "expert", "expert2"), "int64", "tokens",
        "Tokens of the sampled step for which both experts were chosen; the diagonal is the load.",
    ),
    "entropy_histogram": Variable(
        ("sample", "layer", "bin"), "int64", "tokens",
        "Tokens of the sampled step by entropy / ln E, in 32 equal bins of [0, 1].",
    ),
}

TRAIN = {
    "loss": Variable(
        ("step",), "float32", "nats/token", "Next-token cross-entropy, mean over the step's tokens."
    ),
    "lr": Variable(("step",), "float32", "1", "Learning rate of the step."),
    "grad_norm": Variable(
        ("step",), "float32", "1", "Euclidean norm of all gradients before clipping."
    ),
    "tokens_seen": Variable(
        ("step",), "int64", "tokens", "Training tokens up to and including this step."
    ),
    "utc": Variable(("step",), "float64", "s", "UTC at the end of the step, seconds since 1970."),
    "capture_seconds": Variable(
        ("step",), "float32", "s", "Time that the training thread spent in capture in this step."
    ),
    "captured_every": Variable(
        ("step",), "int32", "steps",
        "Steps from one reading of the routers to the next, as in force here; 1: every step.",
    ),
}

EVALUATIONS = {
    "correct": Variable(
        ("checkpoint", "task", "item"), "int8", "1",
        "1 where the right answer was the most probable choice, 0 where not, -1: no such item.",
    ),
    "logprob": Variable(
        ("checkpoint", "task", "item"), "float32", "nats",
        "Log-probability of the right answer among all continuations; NaN where no such item.",
    ),
}

ACTIVATIONS = {
    "expert_ids": Variable(
        ("checkpoint", "token", "layer", "k"), "int16", "expert",
        "Experts chosen for this token of the fixed probe set, the most probable first.",
    ),
    "router_probs": Variable(
        ("checkpoint", "token", "layer", "expert"), "float32", "1",
        "Softmax over all experts for this token of the fixed probe set.",
    ),
}

TRACES = {
    "expert_ids": Variable(
        ("trace", "layer", "k"), "int16", "expert",
        "Experts that this training token was sent to; -1: dropped, or the layer never saw it.",
    ),
    "gates": Variable(
        ("trace", "layer", "k"), "float32", "1",
        "Weight of each of these experts in the layer's sum; NaN where the layer never saw it.",
    ),
    "token": Variable(("trace",), "int32", "1", "Vocabulary id of the token."),
    "position": Variable(
        ("trace",), "int32", "tokens",
        "Place of the token in its document where that is known, else in its row, from 0.",
    ),
    "document": Variable(("trace",), "int64", "1", "Document of the token; -1: not known."),
    "domain": Variable(
        ("trace",), "int16", "1", "Domain of the token, as a place in router/domain; -1: not known."
    ),
}

INTERIORS = {
    "values": Variable(
        ("row", "d_mlp"), "float32", "1",
        "Hidden layer of the expert after its gated unit, before the gate's weight.",
    ),
    "token": Variable(("row",), "int32", "1", "Token of the fixed probe set that the row is of."),
    "gate": Variable(("row",), "float32", "1", "Weight of this expert for this token."),
    "offsets": Variable(
        ("checkpoint", "layer", "bound"), "int64", "rows",
        "Rows of expert e are those from bound e up to, without, bound e + 1.",
    ),
}

# fmt: on

SCHEMA: Mapping[str, Mapping[str, Variable]] = {
    "router": ROUTER,
    "train": TRAIN,
    "evaluations": EVALUATIONS,
    "activations": ACTIVATIONS,
    "traces": TRACES,
    "interiors": INTERIORS,
}

SITES = "activations"
"""The group that holds a variable of its own for every recorded site."""

_STEP = Variable(("step",), "int64", "1", "Optimizer step, ascending.")
_CHECKPOINT = Variable(
    ("checkpoint",), "int64", "1", "Optimizer step after which the weights were saved, ascending."
)
_SEEN = Variable(
    ("checkpoint",), "int64", "tokens", "Training tokens that the checkpoint has learned from."
)
_LAYER = Variable(("layer",), "int64", "1", "Layer of the model, from 0.")
_EXPERT = Variable(("expert",), "int64", "1", "Expert of a layer, from 0.")

COORDINATES: Mapping[str, Mapping[str, Variable]] = {
    "router": {
        "step": _STEP,
        "sample": Variable(("sample",), "int64", "1", "Optimizer step of the sample, ascending."),
        "layer": _LAYER,
        "expert": _EXPERT,
        "expert2": Variable(("expert2",), "int64", "1", "The other expert of a pair, from 0."),
        "domain": Variable(("domain",), "str", "1", "Where a training document comes from."),
    },
    "train": {"step": _STEP},
    "evaluations": {
        "checkpoint": _CHECKPOINT,
        "tokens_seen": _SEEN,
        "task": Variable(("task",), "str", "1", "Evaluation task, '<family>/<task>'."),
        "family": Variable(("task",), "str", "1", "Family of the task."),
        "chance": Variable(("task",), "float64", "1", "Accuracy that guessing earns."),
        "item_count": Variable(
            ("task",), "int64", "items", "Items of the task; later ones are padding."
        ),
    },
    "activations": {
        "checkpoint": _CHECKPOINT,
        "tokens_seen": _SEEN,
        "token_id": Variable(("token",), "int64", "1", "Vocabulary id of the probe token."),
        "domain": Variable(("token",), "str", "1", "Domain that the probe token comes from."),
        "layer": _LAYER,
        "expert": _EXPERT,
    },
    "traces": {
        "step": Variable(("trace",), "int64", "1", "Optimizer step that trained on the token."),
        "layer": _LAYER,
    },
    "interiors": {"checkpoint": _CHECKPOINT, "tokens_seen": _SEEN, "layer": _LAYER},
}
"""Labels stored beside the variables of each group."""

GROWING: Mapping[str, tuple[str, ...]] = {
    "router": ("step", "sample"),
    "train": ("step",),
    "evaluations": ("checkpoint",),
    "activations": ("checkpoint",),
    "traces": ("trace",),
    "interiors": ("checkpoint", "row"),
}
"""Dims that rows are appended along; every other dim has the length that the run's layout
states.
"""

CLOCKS: Mapping[str, str | None] = {
    "step": "step", "sample": "sample", "checkpoint": "checkpoint", "trace": "step", "row": None,
}  # fmt: skip
"""For each growing dim the variable that says which step a row is of; None: its group has another
dim that does. A dim that is no clock itself has no labels.
"""


def conform(ds: xr.Dataset, group: str) -> xr.Dataset:
    """`ds` with units and meanings attached, or one SchemaError that names every departure.

    Variables of the group may be missing (a run need not evaluate); unknown ones, wrong dims and
    wrong dtypes are refused, all in one message. Sites of a model, which no table can list, are let
    through in "activations" where their axes begin with (checkpoint, token).

    Example:
        >>> import numpy as np
        >>> loss = xr.Dataset({"loss": ("step", np.zeros(3, "float32"))})
        >>> conform(loss, "train")["loss"].attrs["units"]
        'nats/token'
    """
    if group not in SCHEMA:
        raise SchemaError(f"no group {group!r} in the schema; the groups are {', '.join(SCHEMA)}.")
    schema = SCHEMA[group]
    faults = []
    for name, got in ds.data_vars.items():
        want = schema.get(str(name))
        if want is None and group == SITES and got.dims[:2] == ("checkpoint", "token"):
            continue
        if want is None:
            faults.append(f"{name}: not in the schema of {group!r}; it knows {', '.join(schema)}")
        elif got.dims != want.dims or got.dtype != want.dtype:
            faults.append(f"{name}: {got.dims} {got.dtype}, expected {want.dims} {want.dtype}")
    if faults:
        raise SchemaError(f"{group} departs from the schema:\n  " + "\n  ".join(faults))
    notes = {
        str(n): {"units": schema[str(n)].units, "long_name": schema[str(n)].meaning}
        for n in ds.data_vars
        if n in schema
    }
    return ds.assign({n: ds[n].assign_attrs(a) for n, a in notes.items()})
