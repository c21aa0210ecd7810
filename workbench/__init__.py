"""A workbench for how mixture-of-experts language models change while they train.

    import workbench as wb

    recorder = wb.Recorder(model, "runs/mine")    # record: around any training loop
    run = wb.open_run("runs/mine")                # open: lazy labelled arrays
    wb.figures.expert_load(load)                  # draw
    wb.testing                                    # synthetic runs with planted truths

Names are imported when they are first used, so that `import workbench` costs milliseconds and a
reader of runs never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench import figures, testing
    from workbench.capture.adapters.generic import Generic
    from workbench.capture.probe_set import ProbeSet
    from workbench.capture.recorder import Recorder
    from workbench.capture.traces import Traces
    from workbench.run import open_run
    from workbench.store.layout import Task

__all__ = [
    "Generic",
    "ProbeSet",
    "Recorder",
    "Task",
    "Traces",
    "__version__",
    "figures",
    "open_run",
    "testing",
]

__version__ = "0.1.0"

_HOMES = {
    "open_run": "workbench.run",
    "Generic": "workbench.capture.adapters.generic",
    "ProbeSet": "workbench.capture.probe_set",
    "Recorder": "workbench.capture.recorder",
    "Task": "workbench.store.layout",
    "Traces": "workbench.capture.traces",
    "figures": "workbench.figures",
    "testing": "workbench.testing",
}

_SISTERS = ("model", "probes", "checkpoints_index")


def _refuse_foreign_sisters() -> None:
    """ImportError where a package of the same name stands before one of ours on the path.

    The packages are flat and `model` is a name that many projects use: without this, a `model.py`
    in the working folder would fail far from here, or be used in place of ours.
    """
    ours = Path(__file__).resolve().parent.parent
    for name in _SISTERS:
        try:
            spec = find_spec(name)
        except ValueError:
            # Somebody has put a module of that name into sys.modules by hand.
            raise ImportError(
                f"a module '{name}' that is not the workbench's was imported already; rename it."
            ) from None
        if spec is None:
            raise ImportError(
                f"the package '{name}' of the workbench is missing beside {Path(__file__).parent}; "
                f"install training-dynamics-workbench again."
            )
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or [""]))).resolve()
        if ours / name not in (found, *found.parents):
            raise ImportError(
                f"'import {name}' finds {found}, not the workbench's own {ours / name}; "
                f"rename it, or run from a folder and with a path that do not hold it."
            )


_refuse_foreign_sisters()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it offers {__all__}")
    home = import_module(_HOMES[name])
    value = home if home.__name__ == f"workbench.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
