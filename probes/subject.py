"""Subject: one checkpoint's model, loaded once, with what one pass over the fixed tokens showed.

Needs   a checkpoint (or a model) and an Exam; the sites that anybody wants to see.
Yields  Subject: the model, its sites (token, ...), its scores on tasks, copies to tinker with.

Sites by these names are there for every kind of model that capture knows; any other name is a site
of TransformerLens hook points, with `{layer}` for all layers at once:

    expert_ids          (layer, token, k) int64     chosen experts, the most probable first
    router_probs        (layer, token, expert)      softmax over all experts, float32
    resid_post          (layer, token, d_model)     residual stream after each block
    logits              (token, vocab)              large: prefer next_logprob where it will do
    next_logprob        (token,)                    nats, of the token that follows; NaN at row ends
    blocks.{layer}.hook_attn_out and the like       (layer, ...) stacked; flattened over (row, pos)
                                                    where the site has these two first

The model is in evaluation mode and its parameters are not to be changed: `copy()` is for that.
Other sites than those declared by the probe are read with a further pass when they are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from model.evaluation import Scores, choice_logprobs, scores_of
from probes.exam import Exam
from probes.inputs.checksum import checksum
from probes.inputs.finite import check_logits, check_site, is_number, not_finite
from probes.inputs.site_readers import reader_of
from workbench.capture.adapters.find import find_routers
from workbench.capture.adapters.router_site import RouterSite
from workbench.checkpoints import Checkpoint
from workbench.errors import UsageError

ROWS_TOKENS = 4096
"""Tokens of one forward."""
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
"""Where torch keeps the hooks of a module, each under a number of its own."""


class Subject:
    """A checkpoint under study.

    Args:
        model: tokens (row, pos) to logits, or to an object with `.logits`.
        exam: what it is asked.
        step, tokens_seen, branch: where in training it stands.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> exam = Exam(tokens=np.arange(32).reshape(4, 8), domains=("a", "a", "b", "b"))
        >>> subject = Subject(MoELM(NANO, seed=0), exam, step=100)
        >>> tuple(subject["router_probs"].shape), tuple(subject["blocks.{layer}.attn.hook_z"].shape)
        ((3, 32, 16), (3, 32, 8, 12))
    """

    def __init__(
        self,
        model: nn.Module,
        exam: Exam,
        *,
        step: int = 0,
        tokens_seen: int = 0,
        branch: str = "main",
        sites: Iterable[str] = (),
    ) -> None:
        self.model = model.eval()
        self.exam = exam
        self.step = step
        self.tokens_seen = tokens_seen
        self.branch = branch
        self.checkpoint: Checkpoint | None = None
        """Which checkpoint it was loaded from."""
        self._sites: dict[str, Tensor] = {}
        self._sums: dict[str, int] = {}
        """Of each site, as it was when it was read."""
        if wanted := list(dict.fromkeys(sites)):
            self._look(wanted)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint | Subject,
        exam: Exam | None = None,
        *,
        sites: Iterable[str] = (),
        device: str = "cpu",
    ) -> Subject:
        """The subject of a checkpoint; one that is a Subject already is given back.

        Args:
            exam: what it is asked; None takes the exam of the checkpoint's run.
            sites: to be read in the one pass.
            device: where the model goes.
        """
        if isinstance(checkpoint, Subject):
            return checkpoint
        exam = Exam.of(checkpoint) if exam is None else exam
        checkpoint.check_unaltered()
        build = exam.build or build_model
        subject = cls(
            build(checkpoint).to(device), exam, step=checkpoint.step,
            tokens_seen=checkpoint.tokens_seen, branch=checkpoint.branch, sites=sites,
        )  # fmt: skip
        subject.checkpoint = checkpoint
        return subject

    # What one pass showed

    def __getitem__(self, site: str) -> Tensor:
        """A site of the one pass, on the CPU."""
        if site not in self._sites:
            self._look([site])
        return self._sites[site]

    def look(self, sites: Iterable[str]) -> None:
        """Reads these sites in one pass, but for those that are there already."""
        if wanted := [site for site in dict.fromkeys(sites) if site not in self._sites]:
            self._look(wanted)

    def state(self) -> dict[str, Any]:
        """What a probe must leave as it was, by name: a checksum of each parameter and buffer, the
        hooks on the modules, whether each is in training mode. About a thousandth of a pass.
        """
        found: dict[str, Any] = {}
        for name, module in self.model.named_modules():
            if hooks := [key for kind in _HOOKS for key in getattr(module, kind, ())]:
                found[f"hooks on {name or 'the model'}"] = hooks
            if module.training:
                found[f"training mode of {name or 'the model'}"] = True
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            found[f"weights {name}"] = checksum(tensor)
        return found

    def changed(self, before: Mapping[str, Any]) -> list[str]:
        """What differs from the `state` before, and the sites that were written on since the pass
        showed them. Empty where a probe left everything as it was.
        """
        now = self.state()
        names = [name for name in (*before, *now) if before.get(name) != now.get(name)]
        sites = [n for n, site in self._sites.items() if checksum(site) != self._sums[n]]
        return [*dict.fromkeys(names), *(f"site {name}" for name in sites)]

    @property
    def labels(self) -> xr.Dataset:
        """What is known of each token (token): token_id, next_id, row, position, domain."""
        return self.exam.labels

    def logits(self, tokens: Tensor, model: nn.Module | None = None) -> Tensor:
        """Logits (row, pos, vocab) of a forward, without gradients.

        Raises:
            UsageError: logits that are no numbers: a checkpoint that diverged.
        """
        device = next((model or self.model).parameters()).device
        with torch.no_grad():
            output = (model or self.model)(tokens.to(device))
        return check_logits(getattr(output, "logits", output), self, model)

    # Its parts

    @cached_property
    def routers(self) -> list[RouterSite]:
        """Its routers, in the order of the layers."""
        return find_routers(self.model)

    @property
    def layers(self) -> list[int]:
        """Its layers with a router, from 0."""
        return list(range(len(self.routers)))

    @property
    def num_experts(self) -> int:
        return self.routers[0].num_experts

    @property
    def experts_per_token(self) -> int:
        return self.routers[0].experts_per_token

    @property
    def router_weights(self) -> list[Tensor]:
        """(expert, d_model), a layer each."""
        found = []
        for router in self.routers:
            matrices = [p for p in router.module.parameters() if p.dim() == 2]
            fitting = [p.detach() for p in matrices if self.num_experts in p.shape]
            if not fitting:
                raise UsageError(f"router {router.name} has no matrix over its experts.")
            matrix = fitting[0]
            found.append(matrix if matrix.shape[0] == self.num_experts else matrix.T)
        return found

    def copy(self) -> nn.Module:
        """A copy of the model whose weights may be changed; hooks are not copied along."""
        return copy.deepcopy(self.model)

    # Its capabilities

    def scores(self, model: nn.Module | None = None) -> Scores:
        """Every item of every task put to the model, or to a changed copy of it.

        Raises:
            UsageError: the exam has no tasks.
        """
        items = self._items()
        return scores_of(items, self.choice_logprobs(model))

    def choice_logprobs(self, model: nn.Module | None = None) -> np.ndarray:
        """Log-probability of every choice of every item (choice,), nats; `exam.items` says whose
        each is (item_of, is_right).
        """
        found = choice_logprobs(model or self.model, self._items())
        check_logits(torch.from_numpy(found), self, model)
        return found

    def _items(self) -> Any:
        if self.exam.items is None:
            raise UsageError(
                "this exam has no tasks; give it some: Exam(..., items=encode_items(...), "
                "chance={...})."
            )
        return self.exam.items

    # The pass

    def _look(self, wanted: Sequence[str]) -> None:
        readers = [reader_of(self, name) for name in wanted]
        tokens_BP = torch.tensor(self.exam.tokens)
        rows = max(1, ROWS_TOKENS // tokens_BP.shape[1])
        device = next(self.model.parameters()).device
        handles: list[Any] = []
        numbers = True
        try:
            for reader in readers:
                handles.extend(reader.attach())
            with torch.no_grad():
                for first in range(0, len(tokens_BP), rows):
                    part_BP = tokens_BP[first : first + rows].to(device)
                    output = self.model(part_BP)
                    logits = getattr(output, "logits", output)
                    for reader in readers:
                        reader.after(part_BP, logits)
                    numbers = numbers and is_number(logits)
        finally:
            for handle in handles:
                handle.remove()
        found = {name: c.take() for name, c in zip(wanted, readers, strict=True)}
        for name, site in found.items():
            check_site(site, name, self)
        if not numbers:
            raise not_finite(self, "logits")
        self._sums |= {name: checksum(site) for name, site in found.items()}
        self._sites |= found


def build_model(checkpoint: Checkpoint) -> nn.Module:
    """The model of a checkpoint by its own format: ours, a Hugging Face folder, a DBRX among them.

    Raises:
        UsageError: a format whose model cannot be told; give the exam a `build`.
        TrainingStateError: a checkpoint of ours that is not whole.
    """
    from model.hf import load_hf
    from model.training.checkpoint import load_model

    path = checkpoint.path
    if (path / "state.json").is_file():
        return load_model(path)
    if not (path / "config.json").is_file():
        raise UsageError(
            f"{path}: found neither a state.json of ours nor a Hugging Face config.json; say how "
            f"its model is built: Exam(..., build=lambda checkpoint: ...)."
        )
    import json

    import transformers

    if json.loads((path / "config.json").read_text()).get("model_type") == "dbrx":
        return load_hf(path)

    def without_bar(bar: Any, args: Any, settings: Any) -> Any:
        return bar(*args, **{**settings, "disable": True})

    # One bar for each checkpoint would drown the runner's own.
    before = transformers.utils.logging.set_tqdm_hook(without_bar)
    try:
        loaded: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    finally:
        transformers.utils.logging.set_tqdm_hook(before)
    return loaded
