"""What is seen: a figure for every question, from labelled arrays; none computes a measure.

    wb.figures.expert_load(load)          where do the tokens go?
    wb.figures.balance(balance)           is the load even?
    wb.figures.emergence(skills, onsets)  when do capabilities arrive?
    wb.figures.arms(difference)           what did an arm buy?
    wb.figures.saturation(settled)        when does the routing settle?
    wb.figures.loss(train)                how did training go?
    wb.figures.transplant(parts)          which part did a capability come from?
    wb.figures.leads(leads)               which signals moved before it?
    wb.figures.lesions(lesion, task=...)  which experts does it need?
    wb.figures.load_spread(load)          how is the load spread over experts?
    wb.figures.entropy_spread(run.router) how sure is the router, token by token?
    wb.figures.flow(flow)                 where do an expert's tokens go next?
    wb.figures.sankey(flow)               and from one layer, as ways?
    wb.figures.rerouting(moves)           which experts lost tokens to which?
    wb.figures.coactivation(pairs)        which experts go together?
    wb.figures.domains(domains)           which experts take which domains?
    wb.figures.vocabulary(vocabulary)     which tokens does an expert see?
    wb.figures.churn(churn)               how much does the routing still change?
    wb.figures.probe_result(found)        what did any probe find?
    wb.figures.by_layer(found)            in which layer, and since when?
    wb.figures.weight_changes(moved)      which parts of the model moved?
    wb.figures.router_grid(grid)          was it the routing, or what is routed to?
    wb.figures.trajectory(apart)          which way did training go, and where did arms part?
    wb.figures.to_html(fig)               one self-contained page; the only way out of a notebook
    wb.figures.save(fig, "load.png")      a file: .html, .png, .svg, .json, or .csv of its table

Every figure holds a sentence in words, a table and its provenance: `wb.figures.caption_of(fig)`.
Names are imported when they are first used, so that a command that draws nothing does not load
plotly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.figures.arm_forest import arms as arms
    from workbench.figures.capability_emergence import emergence as emergence
    from workbench.figures.caption import Caption as Caption
    from workbench.figures.caption import caption_of as caption_of
    from workbench.figures.checkpoint_trajectory import trajectory as trajectory
    from workbench.figures.coactivation_map import coactivation as coactivation
    from workbench.figures.domain_experts import domains as domains
    from workbench.figures.entropy_distribution import entropy_spread as entropy_spread
    from workbench.figures.expert_moves import rerouting as rerouting
    from workbench.figures.expert_vocabulary import vocabulary as vocabulary
    from workbench.figures.figure import show_config as show_config
    from workbench.figures.flow_sankey import sankey as sankey
    from workbench.figures.lead_lag import leads as leads
    from workbench.figures.lesion_curves import lesions as lesions
    from workbench.figures.load_balance import balance as balance
    from workbench.figures.load_distribution import load_spread as load_spread
    from workbench.figures.page import to_html as to_html
    from workbench.figures.probe_heatmap import by_layer as by_layer
    from workbench.figures.probe_lines import probe_result as probe_result
    from workbench.figures.router_churn import churn as churn
    from workbench.figures.router_load import expert_load as expert_load
    from workbench.figures.router_saturation import saturation as saturation
    from workbench.figures.router_transplant_matrix import router_grid as router_grid
    from workbench.figures.routing_flow import flow as flow
    from workbench.figures.saved import save as save
    from workbench.figures.template import arm_colors as arm_colors
    from workbench.figures.training_loss import loss as loss
    from workbench.figures.transplant_waterfall import transplant as transplant
    from workbench.figures.weight_change_map import weight_changes as weight_changes

# No file is named like the function in it: importing the file would hide the function.
_HOMES = {
    "expert_load": "router_load",
    "balance": "load_balance",
    "emergence": "capability_emergence",
    "arms": "arm_forest",
    "saturation": "router_saturation",
    "loss": "training_loss",
    "transplant": "transplant_waterfall",
    "leads": "lead_lag",
    "lesions": "lesion_curves",
    "load_spread": "load_distribution",
    "entropy_spread": "entropy_distribution",
    "flow": "routing_flow",
    "sankey": "flow_sankey",
    "rerouting": "expert_moves",
    "coactivation": "coactivation_map",
    "domains": "domain_experts",
    "vocabulary": "expert_vocabulary",
    "churn": "router_churn",
    "probe_result": "probe_lines",
    "by_layer": "probe_heatmap",
    "weight_changes": "weight_change_map",
    "router_grid": "router_transplant_matrix",
    "trajectory": "checkpoint_trajectory",
    "to_html": "page",
    "save": "saved",
    "show_config": "figure",
    "caption_of": "caption",
    "Caption": "caption",
    "Mark": "marks",
    "marks_of": "marks",
    "arm_colors": "template",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'workbench.figures' has no {name!r}; it has {', '.join(_HOMES)}."
        )
    value = getattr(import_module(f"workbench.figures.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
