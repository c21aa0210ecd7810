"""A digest of a model's weights that does not depend on how they were saved.

Needs   named tensors: a checkpoint's, or a state dict.
Yields  `fingerprint`: 32 hexadecimal digits.

Every floating value is rounded to bfloat16 (to nearest, ties to even) and the names, shapes and
rounded values are hashed in the order of their names. So a model saved in float32 and its copy in
bfloat16 agree, sharded or not, in whatever file format. What it is not: a checksum. A change too
small for bfloat16 everywhere goes unseen (the digests of the files see it), and a format that
renames tensors has another fingerprint until the names are mapped back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

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


def digest(tensors: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    """The fingerprint of (name, safetensors dtype, shape, bytes), in any order."""
    parts = {
        name: hashlib.blake2b(_canonical(dtype, raw), digest_size=16).digest()
        + repr(shape).encode()
        for name, dtype, shape, raw in tensors
    }
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
    return digest((name, *_held(value)) for name, value in tensors.items())


def _held(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    if hasattr(value, "detach"):
        import torch

        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            return "BF16", tuple(value.shape), value.view(torch.int16).numpy().tobytes()
        value = value.numpy()
    array = np.asarray(value)
    little = array.dtype.newbyteorder("<")
    names = {np.dtype(v): k for k, v in _NUMPY.items()}
    return names[little], array.shape, np.ascontiguousarray(array, little).tobytes()
