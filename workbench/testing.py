"""Testing: records of runs that never ran, in which the answer is known.

Needs   a seed, and what is to be true.
Yields  datasets as a run's own: run.router, run.evaluations, run.activations; same dims, dtypes,
        coordinates and attrs (checked by schema.conform), same numbers for the same seed.

For tests of probes, for one's own analysis ("would my method see a dead expert?") and for docs.

    router_record        dead, rising and specialised experts
    activations_record   routing that freezes: kappa is known at every checkpoint
    evaluations_record   tasks that jump, rise smoothly, never arrive: PlantedSkill
    two_arms             two continuations of one checkpoint with a known difference
"""

from workbench.planted.evaluations import evaluations_record, two_arms
from workbench.planted.router import TASKS, DeadExpert, Ramp, router_record
from workbench.planted.routing import activations_record
from workbench.planted.skill import PlantedSkill

__all__ = [
    "TASKS",
    "DeadExpert",
    "PlantedSkill",
    "Ramp",
    "activations_record",
    "evaluations_record",
    "router_record",
    "two_arms",
]
