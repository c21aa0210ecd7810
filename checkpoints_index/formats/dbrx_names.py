"""A DBRX of Hugging Face under the names and shapes of our own model, for the fingerprint.

Needs   its tensors as bytes, and how many experts it has (config.json).
Yields  `own_names`: the same weights, named and laid out as MoELM holds them.

| theirs (transformer.blocks.L.)    | ours (blocks.L.)                                         |
|-----------------------------------|----------------------------------------------------------|
| norm_attn_norm.norm_1.weight      | ln1.weight                                               |
| norm_attn_norm.norm_2.weight      | ln2.weight                                               |
| norm_attn_norm.attn.Wqkv.weight   | attn.W_qkv                                               |
| norm_attn_norm.attn.out_proj.weight | attn.W_out                                             |
| ffn.router.layer.weight           | mlp.router.weight                                        |
| ffn.experts.mlp.w1, v1 (E·F, D)   | mlp.experts.W_gate_in (E, D, 2F): each turned, w1 first  |
| ffn.experts.mlp.w2 (E·F, D)       | mlp.experts.W_out (E, F, D)                              |

transformer.wte.weight is embed.weight, transformer.norm_f.weight ln_final.weight, lm_head.weight
unembed.weight. What has no rule keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from checkpoints_index.formats.weights import Held
from checkpoints_index.safetensors_file import BITS

Stored = tuple[str, str, tuple[int, ...], bytes]

_BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "norm_attn_norm.norm_1.weight": "ln1.weight",
    "norm_attn_norm.norm_2.weight": "ln2.weight",
    "norm_attn_norm.attn.Wqkv.weight": "attn.W_qkv",
    "norm_attn_norm.attn.out_proj.weight": "attn.W_out",
    "ffn.router.layer.weight": "mlp.router.weight",
    "ffn.experts.mlp.w2": "mlp.experts.W_out",
    "ffn.experts.mlp.w1": "mlp.experts.W_gate_in",
}
_OUTSIDE = {
    "transformer.wte.weight": "embed.weight",
    "transformer.norm_f.weight": "ln_final.weight",
    "lm_head.weight": "unembed.weight",
}


def dbrx_experts(config: Mapping[str, Any]) -> int:
    """The number of experts that config.json tells; 0 where it does not."""
    ffn = config.get("ffn_config")
    number = ffn.get("moe_num_experts") if isinstance(ffn, Mapping) else 0
    return number if type(number) is int and number > 0 else 0


def own_names(
    held: Mapping[str, Held], raw: Callable[[str], bytes], experts: int
) -> Iterator[Stored]:
    """Every tensor under our name and in our layout, one at a time.

    Example:
        >>> held = {"lm_head.weight": Held("I8", (2,))}
        >>> list(own_names(held, lambda name: bytes([1, 2]), experts=4))
        [('unembed.weight', 'I8', (2,), b'\\x01\\x02')]
    """
    for name, (dtype, shape) in held.items():
        block = _BLOCK.fullmatch(name)
        own = _IN_BLOCK.get(block[2]) if block else None
        if block is None or own is None:
            if block and block[2] == "ffn.experts.mlp.v1" and _whole(name, held, experts):
                continue
            yield _OUTSIDE.get(name, name), dtype, shape, raw(name)
        elif not own.startswith("mlp.experts."):
            yield f"blocks.{block[1]}.{own}", dtype, shape, raw(name)
        elif not _whole(name, held, experts):
            yield name, dtype, shape, raw(name)
        else:
            parts = [name] if own.endswith("W_out") else [name, name[:-2] + "v1"]
            stacks = [_stack(raw(part), held[part], experts) for part in parts]
            if len(stacks) == 2:
                stacks = [np.concatenate([s.transpose(0, 2, 1) for s in stacks], axis=-1)]
            yield f"blocks.{block[1]}.{own}", dtype, stacks[0].shape, stacks[0].tobytes()


def _whole(name: str, held: Mapping[str, Held], experts: int) -> bool:
    """Whether the experts' tensors of this block can be laid out as ours."""
    trio = [held.get(name[:-2] + which) for which in ("w1", "v1", "w2")]
    first = trio[0]
    return (
        first is not None
        and all(other == first for other in trio)
        and len(first.shape) == 2
        and experts > 0
        and first.shape[0] % experts == 0
    )


def _stack(raw: bytes, held: Held, experts: int) -> np.ndarray:
    """(E·F, D) as (E, F, D), of elements whose bytes alone matter."""
    plain = np.frombuffer(raw, f"V{BITS[held.dtype] // 8}")
    return plain.reshape(experts, -1, held.shape[1])
