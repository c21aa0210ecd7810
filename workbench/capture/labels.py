"""What is known of the tokens of the forwards that follow: whose domain, which count, from where.

Needs   tensors by token or by row, as the trainer has them.
Yields  Labels, which hooks read; empty tensors where nothing is known.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import UsageError

# Shapes: R rows, P positions.


class Labels:
    """Labels of the micro-batch under way; each (R,) or (R, P), or empty.

    Example:
        >>> labels = Labels(torch.device("cpu"), num_domains=2)
        >>> labels.set(domains=torch.tensor([0, 1]))
        >>> labels.domains.tolist(), labels.keep.numel()
        ([0, 1], 0)
    """

    def __init__(self, device: torch.device, num_domains: int) -> None:
        self._device = device
        self._num_domains = num_domains
        self._none = torch.empty(0, dtype=torch.int64, device=device)
        self._all = torch.empty(0, dtype=torch.bool, device=device)
        self._keep_given = False
        self.misfit: str | None = None
        """Labels that were given and do not fit a forward's tokens, since this was last reset."""
        self.mask_misfit: str | None = None
        """An attention mask that does not fit a forward's tokens, and was therefore left out."""
        self.clear()

    def clear(self) -> None:
        """Nothing is known."""
        self.domains = self.documents = self.positions = self._none
        self.keep = self._all
        self._keep_given = False

    def set(
        self,
        *,
        domains: Tensor | None = None,
        keep: Tensor | None = None,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> None:
        """Replaces what is known by what is given; the tensors are read when the model runs.

        Args:
            domains: int64, places in the recorder's domains.
            keep: bool: False for padding.
            documents: int64, ids of the documents that tokens come from.
            positions: int64, places in those documents.

        Raises:
            UsageError: what is no tensor; domains that the recorder does not have. Checked where it
                costs no wait for a GPU.
        """
        self.clear()
        if keep is not None:
            self.keep = self._here("keep", keep, torch.bool)
            self._keep_given = True
        if domains is not None:
            self._check_domains(domains, keep)
            self.domains = self._here("domains", domains, torch.int64)
        if documents is not None:
            self.documents = self._here("documents", documents, torch.int64)
        if positions is not None:
            self.positions = self._here("positions", positions, torch.int64)

    def _here(self, name: str, labels: Tensor, dtype: torch.dtype) -> Tensor:
        if not isinstance(labels, Tensor):
            raise UsageError(
                f"{name} is a {type(labels).__name__}, expected a tensor: torch.tensor({name})."
            )
        if labels.dtype == dtype and labels.device == self._device:
            return labels.detach()
        return labels.detach().to(self._device, dtype, non_blocking=True)

    def _check_domains(self, domains: Tensor, keep: Tensor | None) -> None:
        if not self._num_domains:
            raise UsageError(
                "domains were given, but this recorder has none; name them when it is made: "
                "Recorder(model, path, domains=[...])."
            )
        if not isinstance(domains, Tensor) or domains.device.type != "cpu" or not domains.numel():
            return
        # numpy: torch would wake its threads for this.
        values = domains.detach().numpy()
        if keep is not None and keep.shape == domains.shape and keep.device.type == "cpu":
            # What does not count may be labelled in any way, such as -100.
            values = values[keep.detach().numpy().astype(bool)]
        if values.size and (values.min() < 0 or values.max() >= self._num_domains):
            raise UsageError(
                f"domains from {values.min()} to {values.max()}, expected 0 to "
                f"{self._num_domains - 1}: places in the recorder's domains."
            )

    def fit(self, name: str, tokens: int) -> Tensor:
        """The labels of that name, if they fit a forward of so many tokens; empty if not.

        By token, or by row where each row has the same number of tokens. What does not fit is said
        in `misfit`, or in `mask_misfit` where it is a mask that nobody gave.
        """
        labels: Tensor = getattr(self, name)
        count = labels.numel()
        if count in (0, tokens) or (labels.ndim == 1 and count < tokens and tokens % count == 0):
            return labels
        said = f"{name} of shape {tuple(labels.shape)} for a forward of {tokens} tokens"
        if name == "keep" and not self._keep_given:
            self.mask_misfit = said.replace("keep", "attention_mask")
            return self._all
        self.misfit = said
        return self._all if name == "keep" else self._none

    def watch(self, model: nn.Module) -> Any:
        """Takes a two-dimensional `attention_mask` of integers or booleans among the model's
        keyword arguments as `keep`, forward by forward, unless `keep` was given; returns the hook's
        handle.

        A mask longer than the tokens (a cache, a prefix before them) is cut to their end.
        """

        def before(called: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            # A deep copy of the model has taken the hook along. By id: the compiler sets no guard
            # on `is`, and would run one's code for the other.
            if id(called) != id(model) or self._keep_given:
                return
            mask = kwargs.get("attention_mask")
            # A mask of floats may be one that is added, where 0 keeps.
            if isinstance(mask, Tensor) and mask.ndim == 2 and not mask.is_floating_point():
                ids = kwargs.get("input_ids", args[0] if args else None)
                if isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[0] == mask.shape[0]:
                    mask = mask[:, max(mask.shape[1] - ids.shape[1], 0) :]
                self.keep = mask.bool()
            else:
                self.keep = self._all

        return model.register_forward_pre_hook(before, with_kwargs=True)
