"""What can go wrong with checkpoints on disk, by name.

`exit_code` is what the command line leaves with: 1 failed, 2 wrong usage, 3 nothing there.
"""


class RecordError(ValueError):
    """A checkpoint record that is malformed or contradicts its checkpoint."""

    exit_code = 1


class ClockError(ValueError):
    """A window or an instant that the run's clock cannot answer."""

    exit_code = 2


class CheckpointNotFound(LookupError):
    """No checkpoint answers the description."""

    exit_code = 3

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CheckpointIncomplete(RuntimeError):
    """A checkpoint that was begun and not finished, or was altered afterwards."""

    exit_code = 1


class PickleRefused(ValueError):
    """Weights that could only be read by running code that the file brings along."""

    exit_code = 1


class CatalogueMissing(LookupError):
    """There is no catalogue yet, or none of this version."""

    exit_code = 3

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CatalogueBusy(RuntimeError):
    """Another process is scanning into the same catalogue."""

    exit_code = 1


class CatalogueDamaged(RuntimeError):
    """The catalogue's file cannot be read, or is not a catalogue."""

    exit_code = 1
