"""Routings of every kind, and where a kernel departs from the plain reference on them.

Needs   a device that the kernel runs on; with TRITON_INTERPRET=1 that is a CPU.
Yields  CASES, `random_case`, `departures`; run as a program, JSON: case -> departures.

    TRITON_INTERPRET=1 python tests/gpu/kernel_cases.py --random 20
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.capture import route_stats_reference
from workbench.capture.accumulators import Table
from workbench.capture.adapters.router_site import Scores

# Shapes: T tokens, E experts, K chosen a token.
LAYERS, PLACE = 3, 1


@dataclass(frozen=True)
class Case:
    """One routing."""

    T: int = 150
    E: int = 16
    K: int = 4
    dtype: str = "float32"
    ids: str = "int64"
    scores: Scores = Scores.LOGITS
    domains: int = 1
    tokens_a_row: int = 1
    """Tokens for each label of a domain or of what to keep."""
    keep: bool = False
    dropped: float = 0.0
    """Share of the assignments that are -1."""
    strided: bool = False
    """Rows that lie apart in memory."""
    crossed: bool = False
    """Neighbouring experts that lie apart in memory."""
    spoilt: str = ""
    """Either inf: some experts at minus infinity; or nan: one token that is no number."""
    active: bool = True
    slow: bool = True
    times: int = 1
    """Forwards that are added."""


CASES = {
    "one token": Case(T=1),
    "no token": Case(T=0),
    "a token more than a block": Case(T=65),
    "eight experts, two chosen": Case(E=8, K=2),
    "one chosen": Case(E=8, K=1),
    "sixty experts": Case(E=60, K=4),
    "sixty-four, eight chosen": Case(E=64, K=8),
    "hundred and sixty, six chosen": Case(E=160, K=6, T=70),
    "two hundred and fifty-six": Case(E=256, K=8, T=40),
    "five experts, three chosen": Case(E=5, K=3),
    "all chosen": Case(E=8, K=8),
    "one expert": Case(E=1, K=1),
    "bfloat16": Case(dtype="bfloat16", ids="int32"),
    "float16": Case(dtype="float16", ids="int16"),
    "byte ids": Case(ids="uint8"),
    "sigmoid": Case(scores=Scores.SIGMOID, E=32, K=4),
    "probabilities": Case(scores=Scores.PROBABILITIES, E=60, K=4),
    "domains by token": Case(domains=3),
    "domains by row": Case(domains=5, tokens_a_row=50),
    "long rows": Case(domains=2, tokens_a_row=75, keep=True),
    "padding": Case(keep=True),
    "padding and domains": Case(keep=True, domains=3, dtype="bfloat16", E=60),
    "dropped assignments": Case(dropped=0.3, domains=2),
    "dropped, sixty experts": Case(dropped=0.3, E=60),
    "each block in one domain": Case(T=256, domains=4, tokens_a_row=64),
    "all dropped": Case(dropped=1.0),
    "rows apart": Case(strided=True, dtype="bfloat16"),
    "experts apart": Case(crossed=True),
    "masked experts": Case(spoilt="inf"),
    "masked experts, sigmoid": Case(spoilt="inf", scores=Scores.SIGMOID),
    "not a number": Case(spoilt="nan"),
    "not counted": Case(active=False),
    "without the slow quantities": Case(slow=False),
    "two forwards": Case(times=2, keep=True, domains=2),
}


def random_case(seed: int) -> Case:
    """A routing drawn from the seed."""
    draw = random.Random(seed)
    E = draw.choice([2, 3, 7, 8, 13, 16, 33, 60, 64, 100, 128, 200, 256])
    row = draw.choice([1, 1, 7, 32])
    return Case(
        T=row * draw.randint(1, 400 // row),
        E=E,
        K=draw.randint(1, min(E, 9)),
        dtype=draw.choice(["float32", "float16", "bfloat16"]),
        ids=draw.choice(["int32", "int64"]),
        scores=draw.choice(list(Scores)),
        domains=draw.choice([1, 2, 7]),
        tokens_a_row=row,
        keep=draw.random() < 0.5,
        dropped=draw.choice([0, 0, 0.1]),
        strided=draw.random() < 0.3,
        spoilt=draw.choice(["", "", "inf"]),
        times=draw.choice([1, 1, 3]),
    )


def arguments(case: Case, seed: int, device: torch.device) -> list[Tensor | int]:
    """What the op is given before its flags and tables."""
    made = torch.Generator().manual_seed(seed)
    T, E, K = case.T, case.E, case.K
    scores_TE = torch.randn(T, E, generator=made) * 2
    if case.spoilt == "inf" and E > K:
        scores_TE[:, :: max(E // (E - K), 2)][:, : E - K] = -torch.inf
    ids_TK = scores_TE.topk(K, -1).indices
    if case.spoilt == "nan":
        scores_TE[T // 2, 0] = torch.nan
    gates_TK = torch.rand(T, K, generator=made)
    ids_TK[torch.rand(T, K, generator=made) < case.dropped] = -1
    if case.scores == Scores.PROBABILITIES:
        scores_TE = scores_TE.softmax(-1)
    if case.ids == "uint8" and case.dropped:
        raise ValueError("a byte holds no -1")
    dtype, R = getattr(torch, case.dtype), T // case.tokens_a_row
    domains = torch.randint(case.domains, (R,), generator=made)
    return [
        *(
            _laid_out(part, case).to(device)
            for part in (scores_TE.to(dtype), ids_TK.to(getattr(torch, case.ids)), gates_TK)
        ),
        (domains if case.domains > 1 else domains[:0]).to(device),
        (torch.rand(R, generator=made) < 0.7)[: R if case.keep else 0].to(device),
        int(case.scores),
        LAYERS,
        PLACE,
        case.domains,
    ]


def _laid_out(part: Tensor, case: Case) -> Tensor:
    if case.crossed:
        return part.T.contiguous().T
    if case.strided and len(part):
        wide = torch.zeros(len(part), part.shape[1] + 3, dtype=part.dtype)
        wide[:, : part.shape[1]] = part
        return wide[:, : part.shape[1]]
    return part


def departures(
    case: Case, kernel: Callable[..., None], device: torch.device, seed: int = 0
) -> list[str]:
    """Where the kernel's tables are not the reference's: counts to the last one, sums to rounding.

    The reference runs on a CPU, in float32 as the kernel does.
    """
    layout = Table(LAYERS, case.domains, case.E)
    found = {}
    for name, add, where in (
        ("kernel", kernel, device),
        ("reference", route_stats_reference.add, torch.device("cpu")),
    ):
        table = torch.zeros(layout.cells, dtype=torch.int64, device=where)
        slow = torch.zeros(layout.slow_cells, dtype=torch.int64, device=where)
        flags = torch.tensor([case.active, case.slow], dtype=torch.int64, device=where)
        for turn in range(case.times):
            given = arguments(case, seed + turn, torch.device("cpu"))
            add(*(_moved(part, where) for part in given), flags, table, slow)
        found[name] = (
            layout.parts(table.cpu().numpy()),
            layout.slow_parts(slow.cpu().numpy()),
        )
    (fast, slow_of_fast), (plain, slow_of_plain) = found["kernel"], found["reference"]
    faults = [
        f"{name}: {got.tolist()} where the reference has {want.tolist()}"[:400]
        for name, got, want in (
            ("counts", fast.counts_LDE, plain.counts_LDE),
            ("tokens", fast.tallies_L2[:, 0], plain.tallies_L2[:, 0]),
            ("pairs", slow_of_fast.pairs_LEE, slow_of_plain.pairs_LEE),
        )
        if not np.array_equal(got, want)
    ]
    tokens = int(plain.tallies_L2[PLACE, 0])
    near = np.abs(fast.tallies_L2 - plain.tallies_L2)[:, 1].max()
    # Only where the logits are the logarithms of what is given may a tie be rounded another way.
    if near > (tokens // 1000 + 1 if case.scores == Scores.PROBABILITIES else 0):
        faults.append(f"near ties: {near} of {tokens} otherwise")
    for name in ("masses_L2E", "sums_L4"):
        got, want = getattr(fast, name), getattr(plain, name)
        if not np.allclose(got, want, rtol=1e-5, atol=1e-5 * max(tokens, 1), equal_nan=True):
            faults.append(f"{name}: {got[PLACE].tolist()} for {want[PLACE].tolist()}"[:400])
    bins, plain_bins = slow_of_fast.entropy_histogram_LB, slow_of_plain.entropy_histogram_LB
    # An entropy on the edge of a bin may be rounded into the next.
    moved = np.abs(np.cumsum(bins - plain_bins, axis=1)).max()
    if moved > tokens // 500 + 1 or bins.sum() != plain_bins.sum():
        faults.append(f"histogram: {bins.tolist()} for {plain_bins.tolist()}"[:400])
    return faults


def _moved(part: Tensor | int, where: torch.device) -> Tensor | int:
    # A copy to a device keeps the strides only of what is dense: laid out anew there.
    if isinstance(part, Tensor) and not part.is_contiguous() and part.ndim == 2:
        if part.stride(1) != 1:
            return part.T.contiguous().to(where).T
        wide = torch.zeros(len(part), part.stride(0), dtype=part.dtype, device=where)
        wide[:, : part.shape[1]] = part.to(where)
        return wide[:, : part.shape[1]]
    return part.to(where) if isinstance(part, Tensor) else part


def main() -> None:
    from workbench.capture import route_stats_triton

    parser = argparse.ArgumentParser()
    parser.add_argument("--random", type=int, default=0, help="random cases beside the named ones")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    drawn = {f"seed {n}: {asdict(random_case(n))}": random_case(n) for n in range(asked.random)}
    report = {
        name: departures(case, route_stats_triton.add, torch.device(asked.device))
        for name, case in {**CASES, **drawn}.items()
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
