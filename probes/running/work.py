"""Work: the passes that a series still needs, done here or on the workers of a Dask client.

Needs   a Series; by place of a checkpoint the orders that are to be carried out there.
Yields  `here`, `elsewhere`: (place, what was found) as it comes; `all_at_once`: what a probe that
        mixes checkpoints finds.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import xarray as xr

from probes.running.one_pass import Failure, Order, Outcome, forget, sit
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from probes.running.series import Series

RETRIES = 2
"""How often a worker's failure is tried again."""
Work = Generator[tuple[int, Outcome], None, None]
"""Places of checkpoints, and what was found there; a place may come again with the rest."""


def here(series: Series, todo: Mapping[int, list[Order]]) -> Work:
    """In this process, one checkpoint after the other."""
    examination = uuid4().hex
    try:
        for i, orders in todo.items():
            yield i, _sat(series, i, orders, examination)
    finally:
        forget(examination)


def elsewhere(series: Series, todo: Mapping[int, list[Order]], client: Any) -> Work:
    """On the workers of a Dask client, in the order in which they finish. Where a probe failed by
    chance the others' results are given out at once, and that probe alone is tried again.
    """
    from distributed import as_completed

    examination = uuid4().hex
    tries, open_ = dict.fromkeys(todo, 0), {i: list(orders) for i, orders in todo.items()}
    futures: dict[Any, int] = {}

    def submit(i: int) -> Any:
        # Dask itself tries again where loading fails or a worker dies. The exam goes along with
        # every checkpoint: scattered data would be lost with the workers that hold it.
        future = client.submit(
            sit, series.checkpoints[i], series.exam, open_[i], series.references[i], series.device,
            examination=examination, pure=False, retries=RETRIES,
        )  # fmt: skip
        futures[future] = i
        return future

    done = as_completed([submit(i) for i in todo])
    try:
        for future in done:
            i = futures.pop(future)
            error = future.exception()
            outcome = _all_failed(open_[i], error) if error is not None else future.result()
            future.release()
            again = [o for o in open_[i] if tries[i] < RETRIES and _by_chance(outcome, o)]
            if again:
                tries[i] += 1
                open_[i] = again
                done.add(submit(i))
            names = {order.probe.name for order in again}
            yield i, {name: part for name, part in outcome.items() if name not in names}
    finally:
        client.cancel(list(futures))
        with suppress(Exception):  # workers that are gone hold nothing
            client.run(forget, examination)


def _by_chance(outcome: Outcome, order: Order) -> bool:
    part = outcome[order.probe.name]
    return isinstance(part, Failure) and part.by_chance


def all_at_once(series: Series, order: Order, client: Any) -> xr.Dataset | Failure:
    """What a probe that mixes checkpoints finds; on one worker where there is a client."""
    arguments = (series.checkpoints, series.exam, series.device)
    try:
        if client is None:
            found = order.probe.function(*arguments, **order.params)
        else:
            found = client.submit(
                order.probe.function, *arguments, **order.params, pure=False, retries=RETRIES
            ).result()
        if isinstance(found, xr.Dataset):
            found = found.load()
    except WorkbenchError as error:
        return Failure(str(error))
    except Exception as error:  # a scientist's probe must not take the others down
        return Failure(f"{type(error).__name__}: {error}")
    if not isinstance(found, xr.Dataset):
        return Failure(f"it returned a {type(found).__name__}, expected an xr.Dataset")
    return found.assign_attrs(question=order.probe.question)


def _sat(series: Series, i: int, orders: list[Order], examination: str) -> Outcome:
    at, reference = series.checkpoints[i], series.references[i]
    try:
        return sit(at, series.exam, orders, reference, series.device, examination=examination)
    except Exception as error:  # one damaged checkpoint must not cost the others
        return _all_failed(orders, error)


def _all_failed(orders: Sequence[Order], error: BaseException) -> Outcome:
    return {order.probe.name: Failure(str(error) or type(error).__name__) for order in orders}
