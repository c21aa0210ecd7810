"""Testing: records of runs that never ran, in which the answer is known.

Needs   a seed, and what is to be true.
Yields  datasets as a run's own: run.router, run.evaluations, run.activations; same dims, dtypes,
        coordinates and attrs (checked by schema.conform), same numbers for the same seed.

For tests of probes, for one's own analysis ("would my method see a dead expert?") and for docs.

    router_record        dead, rising and specialised experts
    activations_record   routing that freezes: kappa is known at every checkpoint
    evaluations_record   tasks that jump, rise smoothly, never arrive: PlantedSkill
    two_arms             two continuations of one checkpoint with a known difference
    Patterns             routing whose co-activation, flow, domains and vocabulary are known
    drifting_run         load that drifts by the router, by the data mix, or by both
    signals_record       signals that lead, lag or wander: PlantedSignal
    planted_model        a model whose capability lives in one expert of one layer: PlantedModel
    PlantedSubject       a checkpoint whose streams hold known labels: readable_stream, ...
    planted_run          a whole run on disk, trunk and two arms; PLANTED: what is true of it
    ScriptedLoss         models that say what they were told: their losses and texts are known
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.planted.drifting import DriftingRun as DriftingRun
    from workbench.planted.drifting import drifting_run as drifting_run
    from workbench.planted.evaluations import evaluations_record as evaluations_record
    from workbench.planted.evaluations import two_arms as two_arms
    from workbench.planted.model import PlantedModel as PlantedModel
    from workbench.planted.model import planted_model as planted_model
    from workbench.planted.patterns import Patterns as Patterns
    from workbench.planted.router import TASKS as TASKS
    from workbench.planted.router import DeadExpert as DeadExpert
    from workbench.planted.router import Ramp as Ramp
    from workbench.planted.router import router_record as router_record
    from workbench.planted.routing import activations_record as activations_record
    from workbench.planted.run import PLANTED as PLANTED
    from workbench.planted.run import planted_run as planted_run
    from workbench.planted.scripted import KnownTexts as KnownTexts
    from workbench.planted.scripted import ScriptedLoss as ScriptedLoss
    from workbench.planted.signals import PlantedSignal as PlantedSignal
    from workbench.planted.signals import signals_record as signals_record
    from workbench.planted.skill import PlantedSkill as PlantedSkill
    from workbench.planted.stream import PlantedSubject as PlantedSubject
    from workbench.planted.stream import lexical_stream as lexical_stream
    from workbench.planted.stream import readable_stream as readable_stream
    from workbench.planted.stream import shared_streams as shared_streams

# Some build models: torch is loaded when one of those is named, and not before.
_FILES = {
    "evaluations_record": "evaluations",
    "two_arms": "evaluations",
    "TASKS": "router",
    "DeadExpert": "router",
    "Ramp": "router",
    "router_record": "router",
    "activations_record": "routing",
    "PlantedSkill": "skill",
    "Patterns": "patterns",
    "DriftingRun": "drifting",
    "drifting_run": "drifting",
    "PlantedSignal": "signals",
    "signals_record": "signals",
    "PlantedModel": "model",
    "planted_model": "model",
    "PlantedSubject": "stream",
    "lexical_stream": "stream",
    "readable_stream": "stream",
    "shared_streams": "stream",
    "PLANTED": "run",
    "planted_run": "run",
    "KnownTexts": "scripted",
    "ScriptedLoss": "scripted",
}

__all__ = [*_FILES]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'workbench.testing' has no {name!r}; it has {__all__}.")
    value = getattr(importlib.import_module(f"workbench.planted.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
