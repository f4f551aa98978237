"""Learn the byte-pair vocabulary of the embedded tokenizer from captions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from hushprompt.models.bpe import BytePairTokenizer, split_words

SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")
MIN_COUNT = 3


def train(texts: Iterable[str], size: int) -> BytePairTokenizer:
    """Join the most frequent pair of symbols until there are `size` symbols (Sennrich et al. 2016)."""
    counts = Counter(word for text in texts for word in split_words(text) if word.isascii())
    letters = sorted(set("".join(counts)) | set("abcdefghijklmnopqrstuvwxyz0123456789'-,."))
    symbols = [*SPECIAL, *letters, *(letter + "_" for letter in letters)]
    spelled = {word: [*word[:-1], word[-1] + "_"] for word in counts}
    merges: list[tuple[str, str]] = []
    while len(symbols) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best, count = max(pairs.items(), key=lambda item: (item[1], item[0]))
        if count < MIN_COUNT:
            break
        merges.append(best)
        symbols.append("".join(best))
        for word, parts in spelled.items():
            if best[0] in parts:
                spelled[word] = _joined(parts, best)
    return BytePairTokenizer(tuple(symbols), tuple(merges))


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair."""
    joined: list[str] = []
    at = 0
    while at < len(parts):
        if tuple(parts[at : at + 2]) == pair:
            joined.append("".join(pair))
            at += 2
        else:
            joined.append(parts[at])
            at += 1
    return joined
