"""The tokenizer: byte-level BPE, trained on a sample of every domain.

Needs   texts, a vocabulary size.
Yields  a `tokenizers.Tokenizer`; digits stay single tokens, every byte can be written,
        `<|document|>` begins a document.

Library: `tokenizers` trains and runs it; this file only says how.
Source: byte-pair encoding of words, Sennrich et al. 2016, arXiv:1508.07909.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.errors import DataError, TokenizerMismatch

DOCUMENT = "<|document|>"
PADDING = "<|padding|>"

# A word takes the space before it; digits stand alone, so that numbers are read place by place.
_WORDS = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def train_tokenizer(texts: Iterable[str], d_vocab: int) -> Tokenizer:
    """A tokenizer of at most `d_vocab` entries, the same one for the same texts.

    Raises:
        DataError: `d_vocab` is under 258, the 256 bytes and two special tokens.

    Example:
        >>> tokenizer = train_tokenizer(["the cup, the lamp"] * 9, 300)
        >>> tokenizer.decode(tokenizer.encode("the lamp").ids)
        'the lamp'
    """
    if d_vocab < 258:
        raise DataError(f"d_vocab={d_vocab}: a byte-level vocabulary needs 258 entries or more.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[DOCUMENT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Hash of everything that decides which tokens a text becomes."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def load_tokenizer(path: Path, d_vocab: int) -> Tokenizer:
    """The tokenizer saved at `path`, if it fits a model of `d_vocab` entries.

    Raises:
        DataError: there is none, or it cannot be read.
        TokenizerMismatch: it makes tokens that the model does not have.
    """
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}: expected the tokenizer.json of this run.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise DataError(f"{path} is not a tokenizer that can be read: {error}.") from error
    check_fits(tokenizer, d_vocab)
    return tokenizer


def check_fits(tokenizer: Tokenizer, d_vocab: int) -> None:
    """Refuses a tokenizer that makes tokens which the model does not have.

    Raises:
        TokenizerMismatch: its vocabulary is larger than the model's.
    """
    size = tokenizer.get_vocab_size()
    if size > d_vocab:
        raise TokenizerMismatch(
            f"the tokenizer has {size} entries, the model d_vocab={d_vocab}: use the tokenizer "
            f"that the model was trained with, or a model with d_vocab of {size} or more."
        )
