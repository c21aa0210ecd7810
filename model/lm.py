"""MoELM: the mixture-of-experts language model, with a hook point at every site.

Needs   tokens (batch, pos), int64.
Yields  logits (batch, pos, d_vocab), or the training losses.

The architecture is DBRX's: pre-normalised blocks of grouped-query attention and a dropless mixture
of experts, a final normalisation, an output matrix of its own. The hook points bear the usual
TransformerLens names; model/sites.py lists them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from model.attention import is_hooked, rotary_tables
from model.block import Block
from model.config import MoEConfig
from model.errors import DataError
from model.loss import next_token_loss
from model.norm import LayerNorm
from model.product import linear
from model.sites import Sites, aliases


class Losses(NamedTuple):
    """What training minimises, and its parts."""

    total: Tensor
    """next_token + balance weight x mean over layers of balance + z weight x mean of z."""

    next_token: Tensor
    """Cross-entropy, nats per token."""

    balance_L: Tensor
    """Balance loss of each layer; 1 when even."""

    z_L: Tensor
    """Router z-loss of each layer, logits squared."""


class Unembed(nn.Linear):
    """The output matrix, (d_vocab, d_model)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., d_vocab)."""
        return linear(x, self.weight)


class MoELM(HookedRootModule):
    """A DBRX-style language model on TransformerLens hook points.

    Args:
        config: the shape.
        seed: of the initial weights; they are the same on every device.

    Example:
        >>> from model.config import NANO
        >>> lm = MoELM(NANO, seed=0)
        >>> logits, cache = lm.run_with_cache(torch.zeros(2, 8, dtype=torch.long))
        >>> tuple(logits.shape), tuple(cache["blocks.0.mlp.router.hook_logits"].shape)
        ((2, 8, 768), (2, 8, 16))
    """

    mod_dict: dict[str, nn.Module]

    def __init__(self, config: MoEConfig, seed: int = 0) -> None:
        super().__init__()
        self.cfg = config
        self.embed = nn.Embedding(config.d_vocab, config.d_model)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_final = LayerNorm(config)
        self.unembed = Unembed(config.d_model, config.d_vocab, bias=False)
        self.setup()
        modules = Sites(self.mod_dict)
        modules.update((alias, modules[name]) for alias, name in aliases(config).items())
        self.mod_dict = modules
        if not self.unembed.weight.is_meta:
            self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draws every matrix from a normal distribution, the same on every device.

        Those that write to the stream are scaled by depth.

        Source of the scaling: Radford et al. 2019 (GPT-2), 1 / sqrt(2 x layers).
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        shrink = (2 * self.cfg.n_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            std = self.cfg.init_range * (shrink if name.endswith("W_out") else 1.0)
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            parameter.copy_(drawn.normal_(0.0, std, generator=generator))

    @property
    def W_U(self) -> Tensor:
        """The output matrix, (d_model, d_vocab), as TransformerLens names and turns it."""
        return self.unembed.weight.T

    @property
    def b_U(self) -> Tensor:
        """The bias that the output matrix does not have: zeros, (d_vocab,)."""
        return self.unembed.weight.new_zeros(self.cfg.d_vocab)

    def tokens_to_residual_directions(self, tokens: Tensor | int) -> Tensor:
        """Directions whose product with the centred, scaled final stream is the token's logit.

        The weight of the final normalisation is part of it, so that `ActivationCache.logit_attrs`
        adds up to the logit.

        Args:
            tokens: ids of any shape.

        Returns:
            (..., d_model).

        Example:
            >>> from model.config import NANO
            >>> tuple(MoELM(NANO).tokens_to_residual_directions(torch.tensor([3, 5])).shape)
            (2, 96)
        """
        return self.unembed.weight[tokens] * self.ln_final.weight

    def accumulated_bias(self, *_: Any, **__: Any) -> Tensor:
        """The sum of all biases, as TransformerLens asks for it: none, so (d_model,) zeros."""
        return torch.zeros_like(self.ln_final.weight)

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, return_type: str = "logits"
    ) -> Tensor | Losses:
        """Logits, the next-token loss, or all training losses.

        Args:
            tokens: (batch, pos), int64, in [0, d_vocab); pos at most n_ctx.
            targets: (batch, pos), the token after each; -100 is left out. None: `tokens` shifted by
                one.
            return_type: "logits" (batch, pos, d_vocab); "loss", a scalar in nats per token;
                "losses", a `Losses`.

        Raises:
            DataError: `tokens` has not two axes, the sequence is longer than n_ctx, or return_type
                is none of the three.
        """
        if return_type not in ("logits", "loss", "losses"):
            raise DataError(f"return_type={return_type!r}: expected 'logits', 'loss' or 'losses'.")
        if tokens.dim() != 2:
            raise DataError(
                f"tokens of shape {tuple(tokens.shape)}: expected (batch, pos); "
                f"one sequence goes in as tokens[None]."
            )
        if (length := tokens.shape[1]) > self.cfg.n_ctx:
            raise DataError(
                f"a sequence of {length} tokens; the model was made for n_ctx={self.cfg.n_ctx}: "
                f"cut the sequence or make the model with a larger n_ctx."
            )
        rotary = rotary_tables(self.cfg, length, tokens.device)
        x_BPD = self.hook_embed(self.embed(tokens))
        router_losses = []
        for block in self.blocks:
            x_BPD, of_layer = block(x_BPD, rotary)
            router_losses.append(of_layer)
        x_BPD = self.ln_final(x_BPD)
        if return_type == "logits":
            return self.unembed(x_BPD)
        if targets is None:
            x_BPD, targets = x_BPD[:, :-1], tokens[:, 1:]
        x_TD, targets_T = x_BPD.flatten(0, 1), targets.flatten()
        if is_hooked(self.unembed):
            next_token = F.cross_entropy(self.unembed(x_TD).float(), targets_T)
        else:
            next_token = next_token_loss(x_TD, self.unembed.weight, targets_T)
        if return_type == "loss":
            return next_token
        balance_L, z_L = torch.stack(router_losses).unbind(1)
        total = (
            next_token
            + self.cfg.balance_loss_weight * balance_L.mean()
            + self.cfg.z_loss_weight * z_L.mean()
        )
        return Losses(total, next_token, balance_L, z_L)
