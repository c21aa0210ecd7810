"""What is measured: one quantity per file, each from labelled arrays to a labelled dataset.

`import probes` loads nothing but this file; a probe's file is read when it is first named.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.acquisition import age_of_acquisition as age_of_acquisition
    from probes.answers import answers as answers
    from probes.arms import arm_difference as arm_difference
    from probes.attention import prefix_matching as prefix_matching
    from probes.attribution import attribution as attribution
    from probes.balance import balance as balance
    from probes.barrier import barrier as barrier
    from probes.capability import capability as capability
    from probes.change_point import ChangePoint as ChangePoint
    from probes.change_point import change_point as change_point
    from probes.cka import cka as cka
    from probes.cka import cka_reference as cka_reference
    from probes.coactivation import coactivation as coactivation
    from probes.coactivation import coactivation_fixed as coactivation_fixed
    from probes.committee import committee as committee
    from probes.confidence import confidence as confidence
    from probes.confidence import confidence_fixed as confidence_fixed
    from probes.divergence import divergence as divergence
    from probes.domains import domains as domains
    from probes.domains import domains_fixed as domains_fixed
    from probes.drift import drift as drift
    from probes.drops import drop_rate as drop_rate
    from probes.emergence import Onset as Onset
    from probes.emergence import onset as onset
    from probes.emergence import onsets as onsets
    from probes.essential import essential as essential
    from probes.exam import Exam as Exam
    from probes.examine import examine as examine
    from probes.expert_similarity import expert_similarity as expert_similarity
    from probes.exposure import exposure as exposure
    from probes.flow import flow as flow
    from probes.in_context import in_context as in_context
    from probes.lead_lag import lead_lag as lead_lag
    from probes.learning_coefficient import learning_coefficient as learning_coefficient
    from probes.lesion import lesion as lesion
    from probes.linear import linear_probes as linear_probes
    from probes.load import expert_load as expert_load
    from probes.logit_lens import logit_lens as logit_lens
    from probes.memorisation import memorisation as memorisation
    from probes.participation import participation as participation
    from probes.phases import phases as phases
    from probes.registry import find as find
    from probes.registry import names as names
    from probes.registry import probe as probe
    from probes.report_card import ReportCard as ReportCard
    from probes.report_card import report_card as report_card
    from probes.rerouting import rerouting as rerouting
    from probes.router_transplant import router_transplant as router_transplant
    from probes.signals import signals as signals
    from probes.stability import churn as churn
    from probes.stability import saturation as saturation
    from probes.subject import Subject as Subject
    from probes.super_experts import super_experts as super_experts
    from probes.transplant import transplant as transplant
    from probes.vocabulary import vocabulary as vocabulary
    from probes.weight_change import weight_change as weight_change

# In the order of the story, not of the alphabet.
_FILES = {
    "expert_load": "load",
    "balance": "balance",
    "drop_rate": "drops",
    "confidence": "confidence",
    "confidence_fixed": "confidence",
    "saturation": "stability",
    "churn": "stability",
    "rerouting": "rerouting",
    "divergence": "divergence",
    "drift": "drift",
    "coactivation": "coactivation",
    "coactivation_fixed": "coactivation",
    "flow": "flow",
    "domains": "domains",
    "domains_fixed": "domains",
    "vocabulary": "vocabulary",
    "committee": "committee",
    "expert_similarity": "expert_similarity",
    "super_experts": "super_experts",
    "linear_probes": "linear",
    "cka": "cka",
    "cka_reference": "cka",
    "participation": "participation",
    "logit_lens": "logit_lens",
    "essential": "essential",
    "weight_change": "weight_change",
    "prefix_matching": "attention",
    "in_context": "in_context",
    "memorisation": "memorisation",
    "exposure": "exposure",
    "barrier": "barrier",
    "learning_coefficient": "learning_coefficient",
    "capability": "capability",
    "answers": "answers",
    "onset": "emergence",
    "onsets": "emergence",
    "Onset": "emergence",
    "change_point": "change_point",
    "ChangePoint": "change_point",
    "age_of_acquisition": "acquisition",
    "report_card": "report_card",
    "ReportCard": "report_card",
    "phases": "phases",
    "signals": "signals",
    "lead_lag": "lead_lag",
    "arm_difference": "arms",
    "transplant": "transplant",
    "router_transplant": "router_transplant",
    "lesion": "lesion",
    "attribution": "attribution",
    "probe": "registry",
    "names": "registry",
    "find": "registry",
    "Exam": "exam",
    "Subject": "subject",
    "examine": "examine",
}

__all__ = [*_FILES]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'probes' has no {name!r}; it has {', '.join(__all__)}.")
    value = getattr(importlib.import_module(f"probes.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Probes(ModuleType):
    """The package itself: its public names are the probes, whatever their files are called."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing probes/capability.py would bind `probes.capability` to the file and so hide the
        # probe; the file stays reachable by `from probes.capability import ...`.
        if name in _FILES and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Probes
