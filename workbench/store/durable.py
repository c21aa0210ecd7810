"""Making what was written survive a power cut.

Needs   paths on a local file system.
Yields  `sync_tree`: when it returns, all that was written under the folder is on the disk.

Icechunk on a local disk syncs nothing itself. Of the orders that were measured with simulated power
cuts, the one that lost nothing
is: flush the session, sync, move the branch, sync (writer.py).
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def sync_tree(folder: Path) -> None:
    """Put everything written under `folder` on the disk.

    On Linux this is syncfs: one call, whatever the number of files; it also waits for what other
    programs wrote to the same file system. Elsewhere files of the tree that changed most lately
    cannot be told from the rest at a bearable price, so os.sync asks for all and, where the system
    returns early (POSIX allows it), a power cut within seconds may lose the last commit; a kill of
    the process never does.

    Raises:
        OSError: the disk reported a failure; what was written may not be there.
    """
    if _libc is None:
        os.sync()
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"syncing failed: {os.strerror(code)}", str(folder))
    finally:
        os.close(fd)
