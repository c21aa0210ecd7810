"""Error rates of lesions and attribution: intervals over draws from a pool, alarms at nothing.

Needs   the number of draws (200 where none is given), --into FOLDER for the figures.
Yields  rates-lesion.json in that folder; a line a rate on standard output. A test asks fewer draws.

    python tests/probes/rates_lesion.py 200 --into docs/measured

A large pool of items (rows) is measured once; its mean is the truth, and each draw is as many of it
as a run would have.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import MoEConfig
from model.evaluation import scores_of
from model.lm import MoELM
from probes.arms import bonett_price, mcnemar
from probes.exam import Exam
from probes.lesion import _choices, lesion, mean_change
from probes.statistics.discovery_rate import q_values
from probes.subject import Subject
from probes.surgery.alignment import judged
from probes.surgery.lesioned import answers
from workbench.planted.model import planted_model

POOL, ITEMS = 1600, 64
HOME = (1, 5)


@cache
def lesioned_pool(busy: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each lesion does to each item of a large pool: fall (layer, expert, item) of the
    log-probability, lost and gained (bool). In the busy world the experts that write nothing write
    noise instead, so that many lesions have small effects.
    """
    world = planted_model(items=POOL, noise=0.8, seed=1)
    model = copy.deepcopy(world.after)
    if busy:
        drawn = torch.Generator("cpu").manual_seed(5)
        with torch.no_grad():
            for block in model.blocks:
                W = block.mlp.experts.W_out
                W[:2] = 0.3 * torch.randn(W[:2].shape, generator=drawn)
    exam = Exam(tokens=world.tokens, domains=world.domains, items=world.items)
    heard = answers(model, _choices(Subject(model, exam)))
    whole = scores_of(world.items, heard.intact)
    shape = heard.lesioned.shape[:2]
    fall = np.zeros((*shape, POOL))
    lost, gained = np.zeros(fall.shape, bool), np.zeros(fall.shape, bool)
    for layer, expert in np.ndindex(*shape):
        now = scores_of(world.items, heard.lesioned[layer, expert])
        fall[layer, expert] = (whole.logprob.astype(float) - now.logprob)[0]
        lost[layer, expert] = ((whole.correct > 0) & (now.correct == 0))[0]
        gained[layer, expert] = ((whole.correct == 0) & (now.correct > 0))[0]
    return fall, lost, gained


def lesion_rates(draws: int) -> list[dict[str, Any]]:
    rows = []
    for busy, name in ((False, "one expert does it, others idle"), (True, "others write noise")):
        fall, lost, gained = lesioned_pool(busy)
        truth, true_drop = fall.mean(-1), (lost.mean(-1) - gained.mean(-1))
        acts = (fall != 0).any(-1)
        share = (fall != 0).mean(-1)
        of_acting = np.divide(truth, share, out=np.zeros_like(truth), where=share > 0)
        centred = np.where(fall != 0, fall - of_acting[..., None], 0.0)
        held, drop_held, alarms, found, null = [], [], [], [], []
        for seed in range(draws):
            items = np.random.default_rng([seed, 11]).integers(POOL, size=ITEMS)
            _, low, high, p = mean_change(fall[..., items])
            told = acts & ~np.isnan(low)
            held.append(((low <= truth) & (truth <= high))[told])
            up, down = lost[..., items].sum(-1), gained[..., items].sum(-1)
            _, low, high = bonett_price(up, down, np.full(up.shape, ITEMS))
            drop_held.append(((low <= true_drop) & (true_drop <= high))[acts])
            alarms.append(bool((q_values(p)[~acts] <= 0.05).any()))
            flagged = q_values(p) <= 0.05
            accuracy = q_values(mcnemar(up, down)) <= 0.05
            found.append(bool(flagged[HOME] and accuracy[HOME]))
            # Every lesion with its true mean taken off the items that it acts on: whatever is
            # called is called wrongly.
            _, _, _, p = mean_change(centred[..., items])
            null.append(bool((q_values(p) <= 0.05).any()))
        rows += [
            rate(name, "lesion", "log-probability: interval covers the truth", np.concatenate(held),
                 "0.90 to 0.98", "lesions that act, where bounds are given"),
            rate(name, "lesion", "accuracy: interval covers the truth", np.concatenate(drop_held),
                 "0.90 to 1.00", "Bonett-Price keeps a width where no item changes: conservative"),
            rate(name, "lesion", "false alarms: any expert that does nothing has q <= 0.05", alarms,
                 "at most 0.05", "24 experts"),
            rate(name, "lesion", "false alarms: any lesion whose true mean is 0 has q <= 0.05",
                 null, "at most 0.05", "true means taken off the pool"),
            rate(name, "lesion", "truth found: q <= 0.05 at home by both measures", found,
                 "at least 0.95", ""),
        ]  # fmt: skip
    return rows


def whole_probe(draws: int) -> dict[str, Any]:
    """The probe itself on models drawn anew: the home is called, and nothing else."""
    right = []
    for seed in range(draws):
        home = (seed % 3, 2 + seed % 6)
        world = planted_model(homes={"planted/skill": home}, items=32, noise=0.8, seed=seed)
        exam = Exam(tokens=world.tokens, domains=world.domains, items=world.items)
        found = lesion(Subject(world.after, exam), fixed_tokens=False).isel(task=0)
        called = np.argwhere((found["drop_q"] <= 0.05).values).tolist()
        right.append(called == [list(home)])
    return rate("homes drawn anew, 32 items", "lesion",
                "truth found: the home alone has q <= 0.05 (accuracy)", right,
                "at least 0.95", f"{draws} draws")  # fmt: skip


@cache
def products() -> np.ndarray:
    """(domain, row, task, item): products of single gradients of a small model, a large pool."""
    config = MoEConfig(
        d_vocab=48, d_model=16, n_layers=1, n_heads=2, n_key_value_heads=1, d_mlp=8, num_experts=4,
        experts_per_token=2, n_ctx=16, rope_theta=10_000.0, init_range=0.2,
    )  # fmt: skip
    model = MoELM(replace(config), seed=2)
    rng = np.random.default_rng(4)
    parameters = list(model.parameters())

    def gradients(tokens: np.ndarray, last: bool) -> torch.Tensor:
        rows = []
        for row in torch.from_numpy(tokens):
            logprobs = model(row[None])[0, :-1].log_softmax(-1)
            losses = -logprobs.gather(-1, row[1:, None])[:, 0]
            loss = losses[-1] if last else losses.mean()
            found = torch.autograd.grad(loss, parameters)
            rows.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(rows).double()

    def drawn(domain: int, length: int) -> np.ndarray:
        # Half of a domain's tokens are its own, half are everybody's.
        own = rng.integers(12 * domain, 12 * domain + 12, size=(240, length))
        return np.where(rng.random(own.shape) < 0.5, own, rng.integers(0, 48, size=own.shape))

    rows = torch.stack([gradients(drawn(d, 12), last=False) for d in range(4)])
    items = torch.stack([gradients(drawn(t, 6), last=True) for t in range(3)])
    return torch.einsum("drp,tip->drti", rows, items).numpy()


def attribution_rates(draws: int) -> list[dict[str, Any]]:
    pool = products()
    truth = pool.mean((1, 3))
    centred = pool - truth[:, None, :, None]
    D, R, T, items_in_pool = pool.shape
    out = []
    for n_rows in (8, 2):
        held, alarms = [], []
        for seed in range(draws):
            rng = np.random.default_rng([seed, 12])
            rows, items = (
                rng.integers(R, size=(D, n_rows)),
                rng.integers(items_in_pool, size=(T, 64)),
            )
            for kind, source in (("truth", pool), ("null", centred)):
                each = np.stack([
                    np.stack([source[d][rows[d]][:, t][:, items[t]] for t in range(T)])
                    for d in range(D)
                ])  # fmt: skip
                # (domain, task, row, item)
                of_row = each.mean(3).swapaxes(1, 2).reshape(-1, T)
                verdict = judged(each.mean((2, 3)), of_row, each.mean(2),
                                 np.repeat(np.arange(D), n_rows), np.arange(D))  # fmt: skip
                low, high = verdict["influence_low"], verdict["influence_high"]
                if kind == "truth":
                    held.append(((low <= truth) & (truth <= high)).ravel())
                else:
                    alarms.append(bool((verdict["influence_q"] <= 0.05).any()))
        name = f"4 domains of {n_rows} rows, 3 tasks of 64 items"
        out += [
            rate(name, "attribution", "interval covers the truth", np.concatenate(held),
                 "0.90 to 0.98",
                 "conservative where products of a row and an item vary more than their means"),
            rate(name, "attribution", "false alarms: any of 12 pairs of influence 0 has q <= 0.05",
                 alarms, "at most 0.05", "true influences taken off the pool"),
        ]  # fmt: skip
    return out


def rate(world: str, name: str, what: str, hits: Any, wanted: str, note: str) -> dict[str, Any]:
    share = round(float(np.mean(np.asarray(hits, dtype=float))), 4)
    return {"world": world, "probe": name, "what": what, "share": share, "wanted": wanted,
            "note": note}  # fmt: skip


def rates(draws: int) -> list[dict[str, Any]]:
    """Every rate, of that many draws."""
    return [*lesion_rates(draws), whole_probe(min(draws, 60)), *attribution_rates(draws)]


def main(draws: int, into: Path | None) -> None:
    rows = rates(draws)
    for row in rows:
        line = f"{row['probe']}: {row['what']} ({row['world']})"
        print(f"{row['share']:.3f}  {row['wanted']:16s} {line}")
    if into is not None:
        where = {"machine": "2 shared CPU cores", "date": "2026-11-23"}
        told = {**where, "draws": draws, "rows": rows}
        into.mkdir(parents=True, exist_ok=True)
        (into / "rates-lesion.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    folder = Path(arguments[arguments.index("--into") + 1]) if "--into" in arguments else None
    main(int(arguments[0]) if arguments and arguments[0].isdigit() else 200, folder)
