"""Checksum: a number that tells whether the bits of a tensor were changed.

Needs   a tensor, on any device.
Yields  `checksum`: an int, equal for equal bits in equal places.

On the CPU it is the CRC-32 of the bytes, which no change of 4 adjacent bytes or fewer escapes and
any other escapes with odds of 1 to 2^32. Elsewhere the bytes stay where they are: words of 8 bytes
are laid out as a square whose rows and columns are summed, each sum weighed by its place. Torch's
own count of writes (`_version`) is no use here: what is written through numpy or `.data` is not
counted.
"""

from __future__ import annotations

import zlib
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import pad


def checksum(tensor: Tensor) -> int:
    """A number for the bits of a tensor: whoever writes other values on it changes the number.

    Example:
        >>> site = torch.zeros(3, 4)
        >>> before = checksum(site)
        >>> site.numpy()[1, 2] = 1.0
        >>> checksum(site) == before
        False
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        return zlib.crc32(flat.numpy().data)
    return _where_it_is(flat)


def _where_it_is(flat: Tensor) -> int:
    """Two places that swap their words change a row's sum or a column's."""
    width = isqrt(len(flat) // 8) + 1
    words = pad(flat, (0, -len(flat) % (8 * width))).view(torch.int64).reshape(-1, width)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for dim in (0, 1):
        sums = words.sum(dim)
        total = total * 31 + (sums * (2 * torch.arange(len(sums), device=flat.device) + 1)).sum()
    return int(total)
