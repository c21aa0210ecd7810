"""The story of a run, section by section, in plain data: the template only sets it.

Needs   a Study.
Yields  `summary`, a few sentences; `sections`: what ran, what changed in the final stretch, when
        capabilities came, where and why, what the arms bought, how routing changed, and what other
        probes measured.

A section whose record is missing stays, and says what is missing and how to get it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import plotly.graph_objects as go

from workbench import figures
from workbench.app import plots
from workbench.app.report.blocks import Facts, Missing, Numbers, Section, Words, picture
from workbench.app.report.cards import card_table, onset_table
from workbench.app.report.ran import facts, mix_table
from workbench.app.report.stretch import change_table, drift_table, stretch_words
from workbench.app.report.why import others, why
from workbench.app.study import Study
from workbench.errors import RunNotFound
from workbench.figures.wording import plain


def summary(study: Study) -> list[str]:
    """What a hurried reader should take away: one sentence each, from the numbers of the
    figures."""
    said = [stretch_words(study)]
    for name in ("emergence", "transplant", "lead-lag", "arms", "balance", "saturation"):
        try:
            said.append(figures.caption_of(plots.draw(name, study)).sentence)
        except RunNotFound:
            continue
    return said


def sections(study: Study) -> list[Section]:
    """The chapters in the order in which they are read."""
    return [
        ran(study), changed(study), came(study), why(study), bought(study), routing(study),
        others(study),
    ]  # fmt: skip


def ran(study: Study) -> Section:
    """What was trained, on what, for how long."""
    blocks: list[Any] = [Facts(facts(study))]
    mix = mix_table(study)
    if mix is None:
        blocks.append(Missing("The data mix: the routers' record holds no counts by domain."))
    else:
        blocks.append(
            Numbers("Data mix, % of the tokens", mix, "As counted by the routers, not as planned.")
        )
    blocks.append(picture("loss", partial(plots.draw, "loss", study)))
    return Section("ran", "What ran", blocks)


def changed(study: Study) -> Section:
    """The final stretch, before and after."""
    blocks: list[Any] = [Words(stretch_words(study))]
    table = change_table(study)
    if table.rows:
        note = (
            "Loss and balance: means over a tenth of the stretch's length, next to its start and "
            "its end. Accuracies and routing: at the last checkpoint before it, and at its last."
        )
        blocks.append(Numbers("Before and after the final stretch", table, note))
    else:
        blocks.append(Missing("Nothing was recorded on both sides of the final stretch."))
    drift = drift_table(study)
    if drift.rows:
        note = (
            "Half the sum of changes of the loads, and the shares of it that follow from another "
            "mix of domains, from the router (the same change on fixed tokens), and from neither "
            "(other text within domains, chance). Shares sum to 1 and may be negative."
        )
        blocks.append(Numbers("Did the load move by the router or by the data?", drift, note))
    return Section("changed", "What changed in the final stretch", blocks)


def came(study: Study) -> Section:
    """Onsets."""
    blocks: list[Any] = [picture("emergence", partial(plots.draw, "emergence", study))]
    if study.onsets:
        note = (
            "Onset: where accuracy gets half-way from chance to perfect and stays; 95 % interval "
            "over items and the gap between checkpoints. A jump makes two thirds of its rise "
            "within a fifth of the training, in accuracy and in log-probability."
        )
        blocks.append(Numbers("When each capability came", onset_table(study), note))
        cards = card_table(study)
        if cards.rows:
            note = (
                "The evidence, on a report card: where each curve breaks, with p against a smooth "
                "rise with noise that remembers; the age at which half was acquired, by a logistic "
                "fit; breakthroughness (BIG-bench). A jump here needs the onset's own jump and p "
                "of 0.05 or less in both curves."
            )
            blocks.append(Numbers("Report cards", cards, note))
    return Section("came", "When capabilities came", blocks)


def bought(study: Study) -> Section:
    """The arms against their baseline."""
    blocks: list[Any] = []
    for arm in study.differences:
        blocks.append(
            picture(f"arms-{len(blocks)}", partial(plots.draw_arms, study, arm=arm), True)
        )
    if not blocks:
        blocks = [_missing_arms(study)]
    return Section("bought", "What the arms bought", blocks)


def _missing_arms(study: Study) -> Missing:
    if len(study.arms) < 2:
        return Missing(
            f"This run has one line of training, {plain(study.baseline)}: there is nothing to "
            "compare it with. To fork: `workbench arms RUN --fork-at 0.8 --arm continue --arm "
            "curriculum`."
        )
    about = ("difference", "capabilities")
    reasons = [why for what, why in study.missing.items() if what.startswith(about)]
    return Missing(f"The arms cannot be compared: {' '.join(reasons) or 'no evaluations.'}")


def routing(study: Study) -> Section:
    """Load, balance, saturation."""
    blocks: list[Any] = []
    for i, arm in enumerate(study.arms):
        blocks.append(picture(f"router-load-{i}", partial(_load, study, arm, bool(i))))
    blocks.append(picture("balance", partial(plots.draw, "balance", study)))
    blocks.append(picture("saturation", partial(plots.draw, "saturation", study)))
    return Section("routing", "How routing changed", blocks)


def _load(study: Study, arm: str, late: bool) -> go.Figure:
    """The load of an arm; of further arms only what they do not share with the first."""
    if not late or study.fork_step is None or arm not in study.loads:
        return plots.draw_load(study, arm=arm)
    own = study.loads[arm].sel(step=slice(study.fork_step + 1, None))
    whole, cut = "figures.expert_load(load,", f"slice({study.fork_step + 1}, None)"
    code = plots.code("router-load", study, arm)
    code = code.replace(whole, f"figures.expert_load(load.sel(step={cut}),")
    return figures.expert_load(own, marks=study.marks, code=code)
