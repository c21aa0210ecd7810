"""What can go wrong while capturing, storing and reading, by name.

Every message says what was found, what was expected and the remedy, in one line where it can.
`exit_code` is what the command line leaves with: 1 failed, 2 wrong usage, 3 no such run or data.
"""


class WorkbenchError(Exception):
    """Root of the errors that a user can cause and mend."""

    exit_code = 1


class SchemaError(WorkbenchError, ValueError):
    """An array that is not what the schema says."""


class CaptureError(WorkbenchError, RuntimeError):
    """A model that cannot be captured, or a capture whose counts do not add up."""


class UsageError(WorkbenchError, ValueError):
    """A call or a command line that asks for something that cannot be."""

    exit_code = 2


class RunExists(WorkbenchError, FileExistsError):
    """A new run was asked for where one is already."""

    exit_code = 2

    # OSError builds its text from errno; ours is a sentence.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class RunNotFound(WorkbenchError, LookupError):
    """No run, branch, task or variable of that name."""

    exit_code = 3

    # LookupError quotes its argument; ours is a sentence.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StoreBusy(WorkbenchError, RuntimeError):
    """Another process writes to this store."""


class StoreDamaged(WorkbenchError, RuntimeError):
    """Stored bytes that cannot be read, or are not what was written."""


class ProbeFailed(WorkbenchError, RuntimeError):
    """A probe, or a checkpoint that it was to look at, failed; the rest was computed and kept."""


class DrawingFailed(WorkbenchError, RuntimeError):
    """A picture of a figure could not be drawn: what draws it is missing, or failed."""
