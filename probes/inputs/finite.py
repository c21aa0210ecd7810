"""Finite: refuses the numbers of a checkpoint whose weights or outputs are no numbers.

Needs   what a forward showed: logits, router probabilities, the residual stream, log-probabilities.
Yields  nothing; or a UsageError that names the checkpoint's step, the site and the layer.

A run that diverged leaves NaN in its weights. Every comparison with NaN is false and every top-k of
NaN picks something: agreements of 1, routings of nothing and texts continued with token 0 would be
reported as if they were measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from workbench.errors import UsageError

if TYPE_CHECKING:
    from probes.subject import Subject


def is_number(values: Tensor) -> bool:
    """No NaN and no +inf; -inf is the log of a choice that is ruled out.

    Example:
        >>> is_number(torch.tensor([0.0, -torch.inf])), is_number(torch.tensor([torch.nan]))
        (True, False)
    """
    # One reduction: NaN and +inf both survive a maximum.
    return values.numel() == 0 or float(values.max()) < torch.inf


def check_logits(logits: Tensor, subject: Subject, model: nn.Module | None = None) -> Tensor:
    """The logits (or log-probabilities) as they are.

    Args:
        model: a changed copy that gave them; None: the subject's own.

    Raises:
        UsageError: NaN or +inf among them.
    """
    if not is_number(logits):
        raise not_finite(subject, "logits", model)
    return logits


def check_site(site: Tensor, name: str, subject: Subject) -> Tensor:
    """A site (layer, ...) as it is.

    Raises:
        UsageError: NaN or +inf in it; -inf too in the residual stream and in log-probabilities.
    """
    if name == "next_logprob":
        # A row's last token is followed by nothing: NaN by definition.
        there = torch.from_numpy(subject.labels["next_id"].values >= 0)
        if not torch.isfinite(site[there]).all():
            raise not_finite(subject, name)
    elif site.is_floating_point() and site.ndim:
        strict = name in ("resid_post", "router_probs")
        parts = [site] if name == "logits" or ("{layer}" not in name and not strict) else list(site)
        for layer, part in enumerate(parts):
            if not (torch.isfinite(part).all() if strict else is_number(part)):
                where = f"{name}, layer {layer}," if len(parts) > 1 or strict else name
                raise not_finite(subject, where)
    return site


def not_finite(subject: Subject, what: str, model: nn.Module | None = None) -> UsageError:
    """The error to raise: the step, what is no number, the first parameter that is none."""
    whose = "a changed copy of the checkpoint" if model is not None else "the checkpoint"
    named = (model or subject.model).named_parameters()
    broken = next((n for n, p in named if not torch.isfinite(p).all()), None)
    cause = (
        f"so is its parameter {broken}"
        if broken
        else "its parameters are all finite: something overflows"
    )
    return UsageError(
        f"{whose} at step {subject.step}: {what} are not finite ({cause}), expected numbers. Look "
        f"at the loss there and leave this checkpoint out."
    )
