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
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from model.evaluation import Scores, choice_logprobs, scores_of
from model.lm import MoELM
from probes.exam import Exam
from probes.inputs.finite import check_logits, check_site, is_number, not_finite
from workbench.capture.adapters.find import find_routers
from workbench.capture.adapters.router_site import Reading, RouterSite, probabilities
from workbench.checkpoints import Checkpoint
from workbench.errors import UsageError

CANONICAL = ("expert_ids", "router_probs", "resid_post", "logits", "next_logprob")
ROWS_TOKENS = 4096
"""Tokens of one forward."""


class Subject:
    """A checkpoint under study.

    Args:
        model: tokens (row, pos) to logits, or to an object with `.logits`.
        exam: what it is asked.
        step, tokens_seen, branch: where in training it stands.

    Example:
        >>> from model.config import NANO
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

    def versions(self) -> dict[str, int]:
        """How often each parameter and each site that was read has been written to in place."""
        tensors = dict(self.model.named_parameters()) | {
            f"site {n}": t for n, t in self._sites.items()
        }
        return {name: tensor._version for name, tensor in tensors.items()}

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
        collectors = [_collector(self, name) for name in wanted]
        tokens_BP = torch.from_numpy(self.exam.tokens)
        rows = max(1, ROWS_TOKENS // tokens_BP.shape[1])
        device = next(self.model.parameters()).device
        handles = [h for c in collectors for h in c.attach()]
        numbers = True
        try:
            with torch.no_grad():
                for first in range(0, len(tokens_BP), rows):
                    part_BP = tokens_BP[first : first + rows].to(device)
                    output = self.model(part_BP)
                    logits = getattr(output, "logits", output)
                    for collector in collectors:
                        collector.after(part_BP, logits)
                    numbers = numbers and is_number(logits)
        finally:
            for handle in handles:
                handle.remove()
        found = {name: c.take() for name, c in zip(wanted, collectors, strict=True)}
        for name, site in found.items():
            check_site(site, name, self)
        if not numbers:
            raise not_finite(self, "logits")
        self._sites |= found


class _Routing:
    """expert_ids or router_probs of every layer."""

    def __init__(self, subject: Subject, name: str) -> None:
        self.subject, self.routers, self.name = subject, subject.routers, name
        self.seen: list[list[Tensor]] = [[] for _ in self.routers]

    def attach(self) -> list[Any]:
        return [
            handle
            for layer, (seen, router) in enumerate(zip(self.seen, self.routers, strict=True))
            for handle in router.attach(partial(self._see, layer, seen, router))
        ]

    def _see(self, layer: int, seen: list[Tensor], router: RouterSite, reading: Reading) -> None:
        shown = probabilities(reading.logits_TE, router.scores)
        if not torch.isfinite(shown).all():
            # NaN has a top-k too, but nothing was chosen.
            raise not_finite(self.subject, f"router probabilities, layer {layer},")
        seen.append((reading.ids_TK.long() if self.name == "expert_ids" else shown).cpu())

    def after(self, tokens_BP: Tensor, logits: Tensor) -> None: ...

    def take(self) -> Tensor:
        return torch.stack([torch.cat(seen) for seen in self.seen])


class _Output:
    """logits or next_logprob."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, list[Tensor]()

    def attach(self) -> list[Any]:
        return []

    def after(self, tokens_BP: Tensor, logits: Tensor) -> None:
        if self.name == "logits":
            self.seen.append(logits.float().flatten(0, 1).cpu())
            return
        logprob = logits[:, :-1].float().log_softmax(-1)
        chosen = logprob.gather(-1, tokens_BP[:, 1:, None]).squeeze(-1)
        padded = torch.full(tokens_BP.shape, float("nan"))
        padded[:, :-1] = chosen.cpu()
        self.seen.append(padded.flatten())

    def take(self) -> Tensor:
        return torch.cat(self.seen)


class _Modules:
    """The outputs of some modules, one a layer (or one alone), stacked."""

    def __init__(self, modules: Sequence[nn.Module], stacked: bool) -> None:
        self.modules, self.stacked = modules, stacked
        self.seen: list[list[Tensor]] = [[] for _ in modules]
        self.rows: list[int] = []

    def attach(self) -> list[Any]:
        return [
            module.register_forward_hook(partial(_see_output, seen))
            for module, seen in zip(self.modules, self.seen, strict=True)
        ]

    def after(self, tokens_BP: Tensor, logits: Tensor) -> None:
        for seen in self.seen:
            # (row, pos, ...) becomes (token, ...); what is per assignment or per head stays.
            if seen[-1].shape[:2] == tokens_BP.shape:
                seen[-1] = seen[-1].flatten(0, 1)

    def take(self) -> Tensor:
        whole = [torch.cat(seen) for seen in self.seen]
        return torch.stack(whole) if self.stacked else whole[0]


def _see_output(seen: list[Tensor], module: nn.Module, inputs: Any, output: Any) -> None:
    shown = output[0] if isinstance(output, tuple) else output
    seen.append(shown.detach().float().cpu())


def _collector(subject: Subject, name: str) -> Any:
    if name in ("expert_ids", "router_probs"):
        return _Routing(subject, name)
    if name in ("logits", "next_logprob"):
        return _Output(name)
    modules = getattr(subject.model, "mod_dict", None) or dict(subject.model.named_modules())
    if name == "resid_post":
        if isinstance(subject.model, MoELM):
            name = "blocks.{layer}.hook_resid_post"
        else:
            return _Modules(_decoder_layers(subject.model), stacked=True)
    if "{layer}" not in name:
        if name not in modules:
            raise UsageError(f"no site {name!r} in this model; canonical ones: {CANONICAL}.")
        return _Modules([modules[name]], stacked=False)
    found = []
    for layer in range(1_000_000):
        if (full := name.format(layer=layer)) not in modules:
            break
        found.append(modules[full])
    if not found:
        raise UsageError(f"no site {name!r} in this model; canonical ones: {CANONICAL}.")
    return _Modules(found, stacked=True)


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: of the lists of modules that lie in no other list, the one with
    the most parameters. A block's own lists (its experts) lie in the list of blocks.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outer = [m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)]
    if not outer:
        raise UsageError(
            "resid_post: found no list of blocks (nn.ModuleList) in this model; name the sites by "
            "their modules instead."
        )
    return list(max(outer, key=lambda m: sum(p.numel() for p in m.parameters())))


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
