"""What the experts were really given, seen without the adapter.

Needs   a model, a site, and a forward after `on`.
Yields  `on`, a function that compares a Reading with what was seen; `words`, how it was seen.
"""

from __future__ import annotations

import torch

from workbench.capture.adapters.module_names import parent


def on(model, site):
    """Spies on the experts of a site until the comparison is made."""
    kind = KINDS.get(type(site.module).__name__, _arguments)
    seen = []
    modules = dict(model.named_modules())
    spied, compare = kind(modules[parent(site.name)], site, modules)
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append([*args, *kwargs.values()]), with_kwargs=True
        )
        for module in spied
    ]

    def against(reading):
        for handle in handles:
            handle.remove()
        assert len(seen) == len(spied), "the experts ran once"
        compare(reading, *seen)

    return against


def words(site):
    """How the experts of a site were spied on."""
    kind = KINDS.get(type(site.module).__name__, _arguments)
    return " ".join(kind.__doc__.split())


def _arguments(holder, site, modules):
    """the experts' arguments"""

    def compare(reading, given):
        _, ids_TK, gates_TK = given
        assert torch.equal(reading.ids_TK, ids_TK)
        assert torch.equal(reading.gates_TK, gates_TK)

    return [holder.experts], compare


def _llama4(holder, site, modules):
    """which tokens the experts' inputs hold: the others are zero"""

    def compare(reading, given):
        inputs_ETD = given[0].view(site.num_experts, len(reading.ids_TK), -1)
        chosen_TE = torch.zeros(reading.logits_TE.shape).scatter(1, reading.ids_TK, 1.0)
        assert torch.equal((inputs_ETD != 0).any(-1).T, chosen_TE.bool())

    return [holder.experts], compare


def _jetmoe(holder, site, modules):
    """how many tokens each expert was given, and their sum"""

    def compare(reading, routed, given):
        tokens_TD, (inputs_ND, sizes) = routed[0], given
        counts = torch.bincount(reading.ids_TK.flatten(), minlength=site.num_experts)
        assert counts.tolist() == list(sizes)
        for expert, part in enumerate(inputs_ND.split(list(sizes))):
            sent = tokens_TD[(reading.ids_TK == expert).any(-1)]
            assert torch.allclose(sent.sum(0), part.sum(0), atol=1e-4)

    return [site.module, holder.input_linear], compare


def _doge(holder, site, modules):
    """the ids looked up in the expert embedding"""

    def compare(reading, given):
        assert torch.equal(reading.ids_TK, given[0])

    return [site.module.down_embed], compare


def _switch(holder, site, modules):
    """the experts' one-hot argument"""

    def compare(reading, given):
        _, onehot_TKE, gates_TK = given
        taken_T = onehot_TKE.sum((1, 2)) > 0
        assert not taken_T.all(), "this test wants tokens over capacity"
        assert torch.equal(reading.ids_TK[:, 0] >= 0, taken_T)
        assert torch.equal(reading.ids_TK[taken_T, 0], onehot_TKE[taken_T, 0].argmax(-1))
        assert torch.equal(reading.gates_TK, gates_TK)

    return [holder.experts], compare


def _zaya(holder, site, modules):
    """the experts' arguments; skipped: expert 0 with weight 0"""

    def compare(reading, given):
        _, ids_TK, gates_TK = given
        skipped_TK = reading.ids_TK == site.num_experts - 1
        assert skipped_TK.any(), "this test wants tokens that skip"
        assert torch.equal(reading.ids_TK.masked_fill(skipped_TK, 0), ids_TK)
        assert torch.equal(skipped_TK, gates_TK == 0)
        assert torch.equal(reading.gates_TK, gates_TK)

    return [holder.experts], compare


KINDS = {
    "Llama4Router": _llama4,
    "JetMoeTopKGating": _jetmoe,
    "DogeCDMoE": _doge,
    "SwitchTransformersTop1Router": _switch,
    "ZayaRouter": _zaya,
}
