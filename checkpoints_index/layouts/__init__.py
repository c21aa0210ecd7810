"""How trainers lay out their checkpoints below a folder, and which of them are whole.

Example:
    >>> import tempfile
    >>> list(find(tempfile.mkdtemp()))
    []
"""

from checkpoints_index.layouts.found import Found
from checkpoints_index.layouts.walk import find

__all__ = ["Found", "find"]
