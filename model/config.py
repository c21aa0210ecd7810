"""The shape of a mixture-of-experts language model, and four presets of it.

Needs   nothing.
Yields  MoEConfig, frozen and checked when it is made; NANO, SMALL, BASE, DBRX; `parameter_counts`
        (exact, no model made).

Field names are those of TransformerLens configurations, so that its tools read ours. A variation is
`dataclasses.replace(NANO, num_experts=32)`.

Source of DBRX's numbers: the configuration that Databricks published with the model in March 2024.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from model.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Sizes and constants of one model: all that its weights' shapes and forward pass depend on."""

    d_vocab: int
    """Entries of the vocabulary, padding and special tokens included."""

    d_model: int
    """Width of the residual stream."""

    n_layers: int
    """Blocks, each of one attention and one mixture of experts."""

    n_heads: int
    """Query heads; each is d_model / n_heads wide."""

    n_key_value_heads: int
    """Key and value heads; each serves n_heads / n_key_value_heads of the query heads."""

    d_mlp: int
    """Hidden width of one expert."""

    num_experts: int
    """Experts in each layer."""

    experts_per_token: int
    """Experts that each token is sent to (k)."""

    n_ctx: int
    """Longest sequence, tokens."""

    rope_theta: float = 500_000.0
    """Base of the rotary position frequencies."""

    clip_qkv: float | None = 8.0
    """Queries, keys and values are clamped to plus or minus this; None leaves them."""

    balance_loss_weight: float = 0.05
    """Weight of the load-balance loss, averaged over layers (not pooled), in the training loss."""

    z_loss_weight: float = 0.0
    """Weight of the router z-loss, averaged over layers, in the training loss."""

    init_range: float = 0.02
    """Standard deviation of the normal distribution that weights are drawn from."""

    eps: float = 1e-5
    """Added to the variance in layer normalisation."""

    # What TransformerLens asks of a configuration and is the same for all of ours.
    normalization_type: ClassVar[str] = "LN"
    act_fn: ClassVar[str] = "silu"
    gated_mlp: ClassVar[bool] = True
    attn_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ConfigError(f"{field.name}={value!r}: must be a whole number, 1 or more.")
            if field.type != "int" and not _is_number(value, optional="None" in str(field.type)):
                raise ConfigError(f"{field.name}={value!r}: must be a finite number.")
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"d_model={self.d_model} does not divide by n_heads={self.n_heads}: "
                f"choose a width that is a multiple of the number of heads."
            )
        if self.d_head % 2:
            raise ConfigError(
                f"d_model / n_heads = {self.d_head}: rotary positions turn pairs, "
                f"so the width of a head must be even."
            )
        if self.n_heads % self.n_key_value_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} does not divide by n_key_value_heads="
                f"{self.n_key_value_heads}: each key-value head serves a whole number of heads."
            )
        if self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"experts_per_token={self.experts_per_token} of num_experts={self.num_experts}: "
                f"a token cannot be sent to more experts than there are."
            )
        if self.clip_qkv is not None and not self.clip_qkv > 0:
            raise ConfigError(f"clip_qkv={self.clip_qkv}: must be above 0, or None for no clamp.")
        for name in ("rope_theta", "init_range", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be above 0.")
        for name in ("balance_loss_weight", "z_loss_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be 0 or more.")

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def d_qkv(self) -> int:
        """Width of the fused query, key and value projection."""
        return self.d_model + 2 * self.n_key_value_heads * self.d_head

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `MoEConfig.from_dict` reads them back.

        Example:
            >>> MoEConfig.from_dict(NANO.to_dict()) == NANO
            True
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MoEConfig:
        """The configuration with these values; unknown and missing names are refused by name."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}."
                raise ConfigError(f"unknown field {name!r} in a model configuration{hint}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"model configuration is not complete: {error}.") from error


def _is_number(value: object, optional: bool) -> bool:
    """Whether it can be a field that holds a float."""
    if value is None:
        return optional
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters in all, and those that one token's forward pass uses."""

    total: int
    active: int


def parameter_counts(config: MoEConfig) -> ParameterCounts:
    """Exact numbers of parameters, from the configuration alone.

    Active counts the k chosen experts of each layer and all the rest, both embeddings included.

    Example:
        >>> counts = parameter_counts(DBRX)
        >>> round(counts.total / 1e9, 1), round(counts.active / 1e9, 1)
        (131.6, 36.5)
    """
    c = config
    expert = 3 * c.d_model * c.d_mlp
    attention = c.d_model * c.d_qkv + c.d_model * c.d_model
    outside = c.n_layers * (attention + c.d_model * c.num_experts + 2 * c.d_model)
    outside += 2 * c.d_vocab * c.d_model + c.d_model
    return ParameterCounts(
        total=outside + c.n_layers * c.num_experts * expert,
        active=outside + c.n_layers * c.experts_per_token * expert,
    )


NANO = MoEConfig(
    d_vocab=768, d_model=96, n_layers=3, n_heads=8, n_key_value_heads=4, d_mlp=48,
    num_experts=16, experts_per_token=4, n_ctx=128, rope_theta=10_000.0,
    balance_loss_weight=0.01, z_loss_weight=1e-3, init_range=0.08,
)  # fmt: skip
"""The demo's model: about a million parameters, minutes on two cores."""

SMALL = MoEConfig(
    d_vocab=8192, d_model=384, n_layers=8, n_heads=6, n_key_value_heads=2, d_mlp=384,
    num_experts=16, experts_per_token=4, n_ctx=512, z_loss_weight=1e-3,
)  # fmt: skip
"""For one small GPU, or a patient night on a CPU."""

BASE = MoEConfig(
    d_vocab=32_768, d_model=1024, n_layers=12, n_heads=16, n_key_value_heads=4, d_mlp=1024,
    num_experts=16, experts_per_token=4, n_ctx=2048, z_loss_weight=1e-3,
)  # fmt: skip
"""For one large GPU."""

DBRX = MoEConfig(
    d_vocab=100_352, d_model=6144, n_layers=40, n_heads=48, n_key_value_heads=8, d_mlp=10_752,
    num_experts=16, experts_per_token=4, n_ctx=32_768,
)  # fmt: skip
"""The published shape: 131.6 B parameters, 36.5 B of them active for a token."""

PRESETS: dict[str, MoEConfig] = {"nano": NANO, "small": SMALL, "base": BASE, "dbrx": DBRX}


def preset(name: str) -> MoEConfig:
    """The preset of that name, any case.

    Raises:
        ConfigError: no such preset; the message lists those there are.

    Example:
        >>> preset("nano").num_experts
        16
    """
    if (found := PRESETS.get(name.lower())) is None:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}.{hint}")
    return found
