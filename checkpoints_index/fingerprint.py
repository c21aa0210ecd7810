"""A digest of a model's weights that does not depend on how they were saved.

Needs   named tensors: a checkpoint's, or a state dict.
Yields  `fingerprint`: 32 hexadecimal digits.

Every floating value is rounded to bfloat16 (to nearest, ties to even) and the names, shapes and
rounded values are hashed in the order of their names. So a model saved in float32 and its copy in
bfloat16 or float64 agree, sharded or not, in whatever file format. A copy in float16 or less does
not: its values were rounded, or ran over, before they are rounded here. What it is not: a checksum.
A change too small for bfloat16 everywhere goes unseen (the digests of the files see it).

A model has one fingerprint in every format that names its tensors alike. Where formats name them
differently, these rules bring them together, and no others:

| held as                                  | hashed as                                             |
|------------------------------------------|-------------------------------------------------------|
| ...experts.gate_up_proj (E, 2F, D)       | ...experts.N.gate_proj.weight, .up_proj.weight (F, D) |
| ...experts.down_proj (E, D, F)           | ...experts.N.down_proj.weight (D, F)                  |
| ...block_sparse_moe.experts.N.w1, w3, w2 | ...mlp.experts.N.gate_proj, up_proj, down_proj        |
| ...block_sparse_moe.                     | ...mlp.                                               |
| a DBRX under Hugging Face's names        | our own model's names (formats/dbrx_names.py)         |
| lm_head or unembed equal to the embedding | not at all: its file leaves out a tied one           |

The first two are what transformers does between its files and its memory (Mixtral, Qwen-MoE, OLMoE
and their like), the next two what it renames of a Mixtral.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from checkpoints_index.errors import RecordError

_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bit patterns (uint16) of float32 `values` rounded to bfloat16; every NaN is the same NaN.

    Example:
        >>> hex(round_to_bfloat16(np.float32([1.0]))[0])
        '0x3f80'
    """
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    # Half of the last kept bit, less one where that bit is even: ties go to even.
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype("<u2")).astype("<u2")


def _canonical(dtype: str, raw: bytes) -> bytes:
    """The bytes that are hashed for one tensor held as `dtype` (safetensors' name)."""
    if dtype == "BF16":
        bits = np.frombuffer(raw, "<u2")
        is_nan = (bits & 0x7FFF) > 0x7F80
        return np.where(is_nan, np.uint16(0x7FC0), bits).astype("<u2").tobytes()
    if dtype not in _NUMPY:
        return dtype.encode() + raw
    values = np.frombuffer(raw, _NUMPY[dtype])
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return round_to_bfloat16(values.astype("<f4")).tobytes()
    return values.astype("<i8", casting="unsafe").tobytes()


Stored = tuple[str, str, tuple[int, ...], bytes]
"""A tensor: name, safetensors' dtype, shape, bytes."""

_FUSED = re.compile(r"(.*\bexperts)\.(gate_up_proj|down_proj)", re.S)
_MIXTRAL = re.compile(r"(.*\.mlp\.experts\.\d+)\.(w[123])\.weight", re.S)
_MIXTRAL_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_HEADS = ("lm_head.weight", "unembed.weight")
_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed|embed_tokens|embed_in|wte)\.weight", re.S)


def one_naming(tensors: Iterable[Stored]) -> Iterator[Stored]:
    """The tensors under the names that are hashed: the rules at the top of this file.

    Example:
        >>> fused = ("mlp.experts.down_proj", "I8", (2, 1, 1), bytes([7, 8]))
        >>> [name for name, _, _, _ in one_naming([fused])]
        ['mlp.experts.0.down_proj.weight', 'mlp.experts.1.down_proj.weight']
    """
    for name, dtype, shape, raw in tensors:
        fused = _FUSED.fullmatch(name)
        if fused and len(shape) == 3 and shape[0] and (fused[2] == "down_proj" or not shape[1] % 2):
            parts = ("gate_proj", "up_proj") if fused[2] == "gate_up_proj" else ("down_proj",)
            box = (shape[1] // len(parts), shape[2])
            each = len(raw) // (shape[0] * len(parts))
            for i in range(shape[0] * len(parts)):
                number, part = divmod(i, len(parts))
                own = f"{fused[1]}.{number}.{parts[part]}.weight"
                yield own, dtype, box, raw[i * each : (i + 1) * each]
            continue
        if ".block_sparse_moe." in name:
            name = name.replace(".block_sparse_moe.", ".mlp.")
            if expert := _MIXTRAL.fullmatch(name):
                name = f"{expert[1]}.{_MIXTRAL_NAMES[expert[2]]}.weight"
        yield name, dtype, shape, raw


def digest(tensors: Iterable[Stored]) -> str:
    """The fingerprint of (name, safetensors dtype, shape, bytes), in any order.

    Raises:
        RecordError: two tensors of one name.
    """
    held: dict[str, dict[str, bytes]] = {}
    for stored in tensors:
        for name, dtype, shape, raw in one_naming([stored]):
            values = hashlib.blake2b(_canonical(dtype, raw), digest_size=16).digest()
            by_source = held.setdefault(name, {})
            if stored[0] in by_source:
                raise RecordError(f"two tensors are called {ascii(name)[:80]}; expected one.")
            by_source[stored[0]] = values + repr(shape).encode()
    parts: dict[str, bytes] = {}
    for name, by_source in held.items():
        for source, part in by_source.items():
            # Where rules lead two tensors to one name, both count, under the names they had.
            parts[name if len(by_source) == 1 else f"{name}\0{source}"] = part
    embeddings = {part for name, part in parts.items() if _EMBEDDING.fullmatch(name)}
    for head in _HEADS:
        if parts.get(head) in embeddings:
            del parts[head]
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(parts):
        # Lengths first: no two lists of tensors can run together into the same bytes.
        for part in (name.encode(), parts[name]):
            whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def fingerprint(tensors: Mapping[str, Any]) -> str:
    """The fingerprint of a state dict of torch tensors or numpy arrays.

    Example:
        >>> weights = {"w": np.float32([0.5, -1.25])}
        >>> fingerprint(weights) == fingerprint({"w": weights["w"].astype("float64")})
        True
    """
    from checkpoints_index.formats.dbrx_names import own_names

    held = {name: _about(value) for name, value in tensors.items()}
    return digest(own_names(held, lambda name: _bytes(tensors[name])))


def held_bytes(tensor: Any) -> bytes:
    """The bytes of a torch tensor of any type, little-endian, row-major."""
    import torch

    # A view of bytes wants a dimension, and numpy knows neither bfloat16 nor float8.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _about(value: Any) -> tuple[str, tuple[int, ...]]:
    """Type, as safetensors names it, and shape of a torch tensor or numpy array."""
    if hasattr(value, "detach"):
        from checkpoints_index.safetensors_file import TORCH_NAMES

        kinds = {kind: name for name, kind in TORCH_NAMES.items()}
        kind = str(value.dtype).removeprefix("torch.")
        return kinds.get(kind, kind), tuple(value.shape)
    array = np.asarray(value)
    names = {np.dtype(v): k for k, v in _NUMPY.items()}
    return names[array.dtype.newbyteorder("<")], array.shape


def _bytes(value: Any) -> bytes:
    if hasattr(value, "detach"):
        return held_bytes(value)
    array = np.asarray(value)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
