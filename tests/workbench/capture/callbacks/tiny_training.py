"""A tiny mixture of experts, rows with padding whose count is known, and a way to read the record.

The rows come in order, so what each optimizer step must have counted follows from the data alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import OlmoeConfig, OlmoeForCausalLM

from checkpoints_index.index import CheckpointIndex
from workbench.store.run_store import RunStore

K = 2
ROWS_A_MICRO_BATCH = 2
ACCUMULATED = 4
ROWS_A_STEP = ROWS_A_MICRO_BATCH * ACCUMULATED


def tiny_moe() -> OlmoeForCausalLM:
    """Two layers of four experts, two for each token; the same weights at every call."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=K,
        max_position_embeddings=32, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return OlmoeForCausalLM(config)


@dataclass
class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows of eight places, of which the first 3 to 8 are tokens."""

    count: int
    length: int = 8
    tokens: Tensor = field(init=False)
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, 32, (self.count, self.length), generator=draw)
        lengths = torch.randint(3, self.length + 1, (self.count,), generator=draw)
        self.mask = (torch.arange(self.length) < lengths[:, None]).long()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        labels = self.tokens[i].masked_fill(self.mask[i] == 0, -100)
        return {"input_ids": self.tokens[i], "attention_mask": self.mask[i], "labels": labels}

    def tokens_a_step(self, rows: int = ROWS_A_STEP) -> list[int]:
        """Tokens that are no padding, of each optimizer step in one pass through the rows."""
        return [int(self.mask[i : i + rows].sum()) for i in range(0, self.count, rows)]


@dataclass
class Record:
    """What is in a run's store and index."""

    path: Path

    def group(self, name: str) -> xr.Dataset:
        return RunStore.open(self.path / "store").read("main").dataset(name).load()

    def steps(self) -> list[int]:
        return [int(step) for step in self.group("router")["step"]]

    def tokens(self) -> list[int]:
        return [int(count) for count in self.group("router")["tokens"]]

    def checkpoints(self) -> dict[int, Path]:
        records = CheckpointIndex(self.path).list()
        return {r.step: Path(r.uri) for r in records}

    def must_hold(self, tokens: list[int], first: int = 1) -> None:
        """Every step once, and in every layer tokens x k assignments."""
        router = self.group("router")
        assert self.steps() == list(range(first, first + len(tokens)))
        assert self.tokens() == tokens
        expected = np.array(tokens)[:, None].repeat(router.sizes["layer"], 1) * K
        np.testing.assert_array_equal(router["assignments"].sum("expert"), expected)
        seen = self.group("train")["tokens_seen"]
        np.testing.assert_array_equal(seen, np.cumsum(tokens))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
