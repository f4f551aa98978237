"""Byte-pair encoding inside lower-cased words, as the embedded model uses it.

Source: Sennrich, Haddow, Birch 2016 (arXiv:1508.07909). `_` marks the end of a word.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from hushprompt.errors import DataError


@dataclass(frozen=True)
class BytePairTokenizer:
    """Symbols and merges; ids 0 pad, 1 start, 2 end, 3 unknown."""

    symbols: tuple[str, ...]
    """Symbol of each id."""
    merges: tuple[tuple[str, str], ...]
    """Pairs to join, most frequent first."""
    start_id: int = 1
    end_id: int = 2
    unknown_id: int = 3
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)
    _ranks: dict[tuple[str, str], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {symbol: index for index, symbol in enumerate(self.symbols)})
        object.__setattr__(self, "_ranks", {pair: rank for rank, pair in enumerate(self.merges)})

    @classmethod
    def from_json(cls, path: Path) -> BytePairTokenizer:
        """Read a file with `symbols` and `merges`.

        Raises:
            DataError: the file is missing or not such a file.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(values["symbols"]), tuple((left, right) for left, right in values["merges"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"The tokenizer file {path} is missing or damaged ({error}). Install the package again."
            ) from error

    def to_json(self, path: Path) -> None:
        """Write the file that `from_json` reads."""
        values = {"symbols": self.symbols, "merges": self.merges}
        path.write_text(json.dumps(values, separators=(",", ":")), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        return [self._ids.get(symbol, self.unknown_id) for word in split_words(text) for symbol in self._join(word)]

    def _join(self, word: str) -> list[str]:
        """Merge the letters of a word, best-ranked pair first."""
        symbols = [*word[:-1], word[-1] + "_"]
        while len(symbols) > 1:
            ranked = [(self._ranks.get(pair), at) for at, pair in enumerate(itertools.pairwise(symbols))]
            known = [(rank, at) for rank, at in ranked if rank is not None]
            if not known:
                break
            _, at = min(known)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return symbols


def split_words(text: str) -> list[str]:
    """Lower-case and split into words, single digits and single marks.

    >>> split_words("Ice-cream 42")
    ['ice', '-', 'cream', '4', '2']
    """
    return re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]", text.lower())
