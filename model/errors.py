"""What can go wrong below the recorder, by name. Every message: what was found, what was expected,
the remedy.

`exit_code` is what the command line leaves with: 1 failed, 2 wrong usage, 3 nothing there.
"""


class ConfigError(ValueError):
    """A configuration value, a preset or an arm that cannot be."""

    exit_code = 2


class DataError(ValueError):
    """A corpus, mixture or tokenizer that does not hold together."""

    exit_code = 2


class TokenizerMismatch(DataError):
    """A tokenizer whose vocabulary the model does not have."""


class TrainingStateError(RuntimeError):
    """A saved training state that is incomplete, altered or of another model."""

    exit_code = 1
