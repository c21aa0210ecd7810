"""What can go wrong with checkpoints on disk, by name.

`exit_code` is what the command line leaves with: 1 failed, 2 wrong usage, 3 nothing there.
"""


class RecordError(ValueError):
    """A checkpoint record that is malformed or contradicts its checkpoint."""

    exit_code = 1


class CheckpointNotFound(LookupError):
    """No checkpoint answers the description."""

    exit_code = 3

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CheckpointIncomplete(RuntimeError):
    """A checkpoint that was begun and not finished, or was altered afterwards."""

    exit_code = 1
