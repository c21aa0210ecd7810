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
        """Replaces what is known by what is given.

        Args:
            domains: int64, places in the recorder's domains.
            keep: bool: False for padding.
            documents: int64, ids of the documents that tokens come from.
            positions: int64, places in those documents.

        Raises:
            UsageError: domains that the recorder does not have. Checked where it costs no wait for
                a GPU.
        """
        self.clear()
        if domains is not None:
            self._check_domains(domains)
            self.domains = self._here(domains, torch.int64)
        if keep is not None:
            self.keep = self._here(keep, torch.bool)
            self._keep_given = True
        if documents is not None:
            self.documents = self._here(documents, torch.int64)
        if positions is not None:
            self.positions = self._here(positions, torch.int64)

    def _here(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        if labels.dtype == dtype and labels.device == self._device:
            return labels.detach()
        return labels.detach().to(self._device, dtype, non_blocking=True)

    def _check_domains(self, domains: Tensor) -> None:
        if not self._num_domains:
            raise UsageError(
                "domains were given, but this recorder has none; name them when it is made: "
                "Recorder(model, path, domains=[...])."
            )
        if domains.device.type == "cpu" and domains.numel():
            # numpy: torch would wake its threads for this.
            values = domains.detach().numpy()
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= self._num_domains:
                raise UsageError(
                    f"domains from {low} to {high}, expected 0 to {self._num_domains - 1}: "
                    f"places in the recorder's domains."
                )

    def watch(self, model: nn.Module) -> Any:
        """Takes a two-dimensional `attention_mask` among the model's keyword arguments as `keep`,
        forward by forward, unless `keep` was given; returns the hook's handle.
        """

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            mask = kwargs.get("attention_mask")
            if self._keep_given:
                return
            if isinstance(mask, Tensor) and mask.ndim == 2:
                self.keep = mask.bool()
            else:
                self.keep = self._all

        return model.register_forward_pre_hook(before, with_kwargs=True)
