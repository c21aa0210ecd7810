"""A DBRX of Hugging Face under the names and shapes of our own model, for the fingerprint.

Needs   its tensors as bytes. The router's shape tells how many experts there are: config.json is
        not asked, which need not be there.
Yields  `own_names`: the same weights, named and laid out as MoELM holds them; those of another
        model as they are.

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
unembed.weight. What has no rule keeps its name, and so does what would take another's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from checkpoints_index.safetensors_file import BITS

Stored = tuple[str, str, tuple[int, ...], bytes]
Held = tuple[str, tuple[int, ...]]
"""Type, as safetensors names it, and shape."""

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


def own_names(held: Mapping[str, Held], raw: Callable[[str], bytes]) -> Iterator[Stored]:
    """Every tensor under our name and in our layout, one at a time.

    Example:
        >>> list(own_names({"lm_head.weight": ("I8", (2,))}, lambda name: bytes([1, 2])))
        [('lm_head.weight', 'I8', (2,), b'\\x01\\x02')]
    """
    blocks = [match for match in map(_BLOCK.fullmatch, held) if match]
    is_dbrx = any(match[2] == "ffn.experts.mlp.w1" for match in blocks)
    for name, (dtype, shape) in held.items():
        block = _BLOCK.fullmatch(name)
        if not is_dbrx:
            yield name, dtype, shape, raw(name)
        elif block and block[2].startswith("ffn.experts.mlp."):
            yield from _experts(name, block, held, raw)
        else:
            own = _OUTSIDE.get(name, name)
            if block and block[2] in _IN_BLOCK:
                own = f"blocks.{block[1]}.{_IN_BLOCK[block[2]]}"
            yield (name if own in held else own), dtype, shape, raw(name)


def _experts(
    name: str, block: re.Match[str], held: Mapping[str, Held], raw: Callable[[str], bytes]
) -> Iterator[Stored]:
    """One tensor of the experts in our layout: v1 goes with w1."""
    number, theirs = block.groups()
    experts = _experts_of(number, held)
    ours = f"blocks.{number}.{_IN_BLOCK.get(theirs, theirs)}"
    if not experts or ours in held or theirs[-2:] not in ("w1", "v1", "w2"):
        yield name, *held[name], raw(name)
    elif not theirs.endswith("v1"):
        parts = [name] if theirs.endswith("w2") else [name, name[:-2] + "v1"]
        stacks = [_stack(raw(part), held[part], experts) for part in parts]
        if len(stacks) == 2:
            stacks = [np.concatenate([s.transpose(0, 2, 1) for s in stacks], axis=-1)]
        yield ours, held[name][0], stacks[0].shape, stacks[0].tobytes()


def _experts_of(number: str, held: Mapping[str, Held]) -> int:
    """How many experts a block has; 0 where their tensors cannot be laid out as ours."""
    inside = f"transformer.blocks.{number}.ffn."
    trio = [held.get(f"{inside}experts.mlp.{which}") for which in ("w1", "v1", "w2")]
    first, router = trio[0], held.get(f"{inside}router.layer.weight")
    if first is None or router is None or any(other != first for other in trio):
        return 0
    dtype, shape = first
    experts = router[1][0] if len(router[1]) == 2 else 0
    ours = {f"blocks.{number}.{_IN_BLOCK[f'ffn.experts.mlp.{which}']}" for which in ("w1", "w2")}
    fits = len(shape) == 2 and experts > 0 and shape[0] % experts == 0 and dtype in BITS
    return experts if fits and not ours & set(held) else 0


def _stack(raw: bytes, held: Held, experts: int) -> np.ndarray:
    """(E·F, D) as (E, F, D), of elements whose bytes alone matter."""
    dtype, shape = held
    plain = np.frombuffer(raw, f"V{BITS[dtype] // 8}")
    return plain.reshape(experts, shape[0] // experts, shape[1])
