"""Text as rows of tokens: the world's documents and the real text that comes with Python, tokenised
and packed.

Needs   a World, the standard library's source files, a tokenizer.
Yields  Corpus: for each domain, row number i is always the same `row_tokens` tokens (random access,
        so that a position in the data is one number a domain).

Domains: one for each task of the world, `code_text` (Python source without its docstrings) and
`prose` (the docstrings). A row is packed with documents of one domain, each begun by the document
token, and cut at the end.

Real text is cleaned (unreadable and generated files out, lines of data out), exact duplicates are
dropped, and one file in sixteen is held out for the probe set.
"""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from model.data.tokenizer import DOCUMENT
from model.data.world import TASKS, World
from model.errors import DataError

TEXT_DOMAINS = ("code_text", "prose")
DOMAINS: tuple[str, ...] = (*TASKS, *TEXT_DOMAINS)
HELD_OUT_FILES = 16
"""One source file in this many is never trained on."""


@dataclass(frozen=True)
class RealText:
    """Pieces of real text, in a fixed order; `held_out` come from files that training never
    sees.
    """

    code: tuple[str, ...]
    prose: tuple[str, ...]
    code_held_out: tuple[str, ...]
    prose_held_out: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Hash of all of it: two machines with the same digest train on the same real text."""
        hasher = hashlib.sha256()
        for part in (self.code, self.prose, self.code_held_out, self.prose_held_out):
            for piece in part:
                hasher.update(piece.encode("utf-8", "surrogatepass") + b"\0")
        return hasher.hexdigest()[:16]


@cache
def collect_standard_library(max_bytes: int = 4_000_000) -> RealText:
    """Source and docstrings of the standard library's top-level modules, at most `max_bytes` of
    source.

    Raises:
        DataError: this Python carries no readable source.

    Example:
        >>> text = collect_standard_library(max_bytes=100_000)
        >>> len(text.code) > 0 and len(text.prose) > 0
        True
    """
    code: dict[bool, list[str]] = {False: [], True: []}
    prose: dict[bool, list[str]] = {False: [], True: []}
    seen: set[bytes] = set()
    taken = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if taken >= max_bytes:
            break
        try:
            with tokenize.open(path) as file:
                source = file.read()
            tree = ast.parse(source)
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
            continue
        taken += len(source)
        held_out = hashlib.sha256(path.name.encode()).digest()[0] % HELD_OUT_FILES == 0
        prose[held_out] += [t for t in map(_clean_prose, _docstrings(tree)) if _is_new(t, seen)]
        code[held_out] += [t for t in _definitions(tree, source) if _is_new(t, seen)]
    if not (code[False] and prose[False]):
        raise DataError(
            "the standard library's source was not found beside this Python; expected .py files in "
            f"{sysconfig.get_paths()['stdlib']}: use a Python that ships its source."
        )
    return RealText(*(tuple(p) for p in (code[False], prose[False], code[True], prose[True])))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _definitions(tree: ast.Module, source: str) -> Iterator[str]:
    """Source of every top-level function and class as it stands, the lines of docstrings left
    out.
    """
    lines = source.split("\n")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    dropped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            dropped.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    for statement in tree.body:
        if not isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        numbers = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        text = "\n".join(lines[n - 1].rstrip() for n in numbers if n not in dropped)
        # Tables of constants are data, not code.
        if len(text) >= 80 and sum(c.isalpha() or c.isspace() for c in text) > 0.6 * len(text):
            yield text


def _clean_prose(text: str) -> str:
    """The paragraphs that read as prose: no doctest sessions, no tables, one line a paragraph."""
    paragraphs = []
    for block in text.split("\n\n"):
        line = " ".join(block.split())
        letters = sum(c.isalpha() or c == " " for c in line)
        if len(line) >= 40 and ">>>" not in line and letters > 0.8 * len(line):
            paragraphs.append(line)
    return "\n".join(paragraphs)


def _is_new(text: str, seen: set[bytes]) -> bool:
    if not text:
        return False
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
    is_new = digest not in seen
    seen.add(digest)
    return is_new


@dataclass
class Corpus:
    """Rows of tokens by domain and number.

    Args:
        world: where the tasks' documents come from.
        text: the real text.
        tokenizer: makes tokens of both.
        row_tokens: tokens in a row.
        seed: order in which rows of real text come, a new order each epoch.
    """

    world: World
    text: RealText
    tokenizer: Tokenizer
    row_tokens: int
    seed: int = 0
    _packed: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _orders: dict[tuple[str, int], np.ndarray] = field(default_factory=dict, repr=False)

    def rows(self, domain: str, start: int, count: int) -> np.ndarray:
        """Rows start .. start + count - 1 of a domain's training stream, (count, row_tokens),
        int64.

        Raises:
            DataError: no such domain.
        """
        if domain in TASKS:
            return self._world_rows(domain, start, count)
        if domain not in TEXT_DOMAINS:
            raise DataError(f"no domain {domain!r}; the domains are {', '.join(DOMAINS)}.")
        packed = self._packed.get(domain)
        if packed is None:
            pieces = self.text.code if domain == "code_text" else self.text.prose
            packed = self._packed[domain] = self._pack(pieces)
        epochs, offsets = np.divmod(np.arange(start, start + count), len(packed))
        return np.stack(
            [
                packed[self._order(domain, int(e), len(packed))[o]]
                for e, o in zip(epochs, offsets, strict=True)
            ]
        )

    def held_out_rows(self, domain: str, count: int) -> np.ndarray:
        """Rows that training never shows: for a fixed probe set. World rows are made of held-out
        items.
        """
        if domain in TASKS:
            items = self.world.items(domain, 32)
            rng = random.Random(f"probe/{self.seed}/{domain}")
            texts = [
                [i.prompt + i.right for i in rng.choices(items, k=self.row_tokens)]
                for _ in range(count)
            ]
            return np.stack([self._pack_documents(documents) for documents in texts])
        held_out = self.text.code_held_out if domain == "code_text" else self.text.prose_held_out
        packed = self._pack(held_out)
        if len(packed) < count:
            raise DataError(
                f"{count} held-out rows of {domain} asked for, {len(packed)} there are: "
                f"collect more text or ask for fewer."
            )
        return packed[:count]

    def _world_rows(self, domain: str, start: int, count: int) -> np.ndarray:
        # A document has at least 4 tokens, so this many always fill a row. Numbering documents by
        # row keeps access random: row i never depends on how long row i - 1 was.
        most = -(-self.row_tokens // 4)
        per_row = self._documents_per_row(domain)
        texts = [
            [self.world.document(domain, row * most + d) for d in range(per_row)]
            for row in range(start, start + count)
        ]
        encoded = self.tokenizer.encode_batch([_join(documents) for documents in texts])
        rows = []
        for row, documents, encoding in zip(
            range(start, start + count), texts, encoded, strict=True
        ):
            ids = encoding.ids
            while len(ids) < self.row_tokens:
                documents.append(self.world.document(domain, row * most + len(documents)))
                ids = ids + self.tokenizer.encode(_join(documents[-1:])).ids
            rows.append(ids[: self.row_tokens])
        return np.array(rows, dtype=np.int64)

    def _documents_per_row(self, domain: str) -> int:
        sample = [self.world.document(domain, i) for i in range(16)]
        mean = np.mean(
            [len(e.ids) for e in self.tokenizer.encode_batch([_join([d]) for d in sample])]
        )
        return max(1, int(np.ceil(self.row_tokens / mean)))

    def _order(self, domain: str, epoch: int, rows: int) -> np.ndarray:
        key = (domain, epoch)
        if key not in self._orders:
            digest = hashlib.sha256(f"{self.seed}/{domain}/{epoch}".encode()).digest()
            self._orders[key] = np.random.default_rng(list(digest)).permutation(rows)
        return self._orders[key]

    def _pack(self, pieces: tuple[str, ...]) -> np.ndarray:
        """All pieces end to end, cut into rows; a last part that fills no row is left out."""
        ids = np.concatenate(
            [
                np.array(e.ids, dtype=np.int64)
                for e in self.tokenizer.encode_batch([_join([p]) for p in pieces])
            ]
        )
        rows = len(ids) // self.row_tokens
        if rows == 0:
            raise DataError(f"real text of {len(ids)} tokens fills no row of {self.row_tokens}.")
        return ids[: rows * self.row_tokens].reshape(rows, self.row_tokens)

    def _pack_documents(self, documents: list[str]) -> np.ndarray:
        ids = self.tokenizer.encode(_join(documents)).ids
        return np.array(ids[: self.row_tokens], dtype=np.int64)


def _join(documents: list[str]) -> str:
    return "".join(DOCUMENT + d for d in documents)
