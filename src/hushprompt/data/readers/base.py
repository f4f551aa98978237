"""What readers of a user's own data share: fields, names of classes and clients, and the split where none is given."""

from __future__ import annotations

import dataclasses
import math
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hushprompt import checks
from hushprompt.data.base import Dataset, Duplicates, HeldByClients
from hushprompt.data.copies import find_copies, refuse_across_splits
from hushprompt.data.decoding import Media
from hushprompt.data.findings import Finding, finding
from hushprompt.data.groups import check_pattern, name_in_path, with_copies
from hushprompt.data.listing import About, Example, Listing, OnUnreadable, Source, build, whole_split
from hushprompt.data.splitting import SPLIT_WORDS, TEST, VALIDATION, check_fractions, split_per_class
from hushprompt.errors import ConfigError, DataError
from hushprompt.user_text import nfc, read_lines

WHOLE = re.compile(r"([+-]?\d{1,1000})\.0*")
"""A whole number that is written with a point, digits and all."""
NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|nan|NaN|NAN")
"""Another number with a point."""
NO_CLASS = re.compile(r"[+-]?\d+,\d+|#(N/A|REF!|NAME\?|VALUE!|DIV/0!|NUM!|NULL!)")
"""Numbers with a decimal comma, and what spreadsheets write for an error."""


class Found(NamedTuple):
    """One example as the data names it; None where the data does not say."""

    name: str
    label: str
    split: str | None = None
    domain: str | None = None
    client: str | None = None
    group: str | None = None

    def composed(self) -> Found:
        """Return it with its names in NFC; the path stays as it is."""
        named = (self.label, self.domain, self.client, self.group)
        label, domain, client, group = (value and nfc(value) for value in named)
        return self._replace(label=label or "", domain=domain, client=client, group=group)


@dataclass(frozen=True, kw_only=True)
class OwnData(HeldByClients):
    """Fields of every data set that readers bring."""

    needs_classes: ClassVar[bool] = True
    """Whether there must be two."""

    classes: tuple[str, ...] = ()
    """Classes in label order; empty: sorted. An entry is the class as the data spells it, "as spelled=as shown in
    prompts", or, where the data has numbers from 0, the name of the number at its place."""
    classes_file: str = ""
    """Text file with one entry of `classes` a line, instead of the list."""
    validation_fraction: float = VALIDATION
    """Share of each class for choosing settings, where the data names no splits."""
    test_fraction: float = TEST
    """Share of each class for test, where the data names no splits."""
    split_seed: int = 0
    """Another seed gives another split, where the data names none."""
    sampling_rate: int = 48000
    """Samples per second that sounds are resampled to; CLAP wants 48,000."""
    on_unreadable: OnUnreadable = "error"
    """"error": a damaged example stops the run and is named. "skip": all are read at every start, and damaged ones are
    left out, named and counted."""
    duplicates: Duplicates = "refuse"
    """"refuse": files with equal bytes in training and in test, or at two clients, stop the run and are named. "allow":
    they are told only. "group": they belong together, for privacy.privacy_unit = "group"; where the data name no
    splits, they go to one split."""
    group_pattern: str = ""
    """Regular expression that finds the group of an example (patient, customer, document) in its path, by its first
    pair of parentheses or as a whole, such as 'patient(\\d+)'. Left out: the data's own column of groups, if any."""

    def __post_init__(self) -> None:
        checks.several(of=checks.CLASSES_IN_FILE, classes=self.classes)
        check_fractions(self.validation_fraction, self.test_fraction)
        checks.positive(sampling_rate=self.sampling_rate)
        check_pattern(self.group_pattern)

    def dataset(
        self,
        kind: str,
        where: Path,
        found: Sequence[Found],
        source: Source,
        media: Media,
        order: Sequence[str] = (),
        findings: Sequence[Finding] = (),
    ) -> Dataset:
        """Number what the data names, split it if it is not split, and build it.

        Args:
            kind: name of the registered class, which names the split's random stream.
            where: file or folder of the data; its name is the data set's.
            found: all examples, in the source's order.
            source: their bytes.
            media: what they are.
            order: the classes in the data's own order, where it has one.
            findings: what the reader noticed.

        Raises:
            DataError: the examples do not agree with each other, or with `classes`; there is one class; or there are
                copies in training and in test.
        """
        findings = [*findings, *spelled_twice(found)]
        found = [one.composed() for one in self._grouped(found, where)]
        check_found(found, where, are_copies_one=self.duplicates == "group")
        class_names, labels = name_classes([one.label for one in found], self.wanted(), where, map(nfc, order))
        if len(class_names) == 1 and self.needs_classes:
            raise DataError(
                f"{where} has one class, {class_names[0]!r}: every answer would be right. Point to the folder that has "
                "the folders of all classes, or name all classes in data.classes."
            )
        domain_names, domains = number([one.domain or "all" for one in found])
        client_names, clients = number([one.client or "" for one in found])
        group_names, groups = number([one.group or "" for one in found])
        examples = [
            Example(
                one.name,
                label,
                SPLIT_WORDS[(one.split or "train").lower()],
                domain,
                client if one.client else None,
                group if one.group else None,
            )
            for one, label, domain, client, group in zip(found, labels, domains, clients, groups, strict=True)
        ]
        group_names = group_names if found[0].group else ()
        if self.duplicates == "group":
            copies = find_copies({"": whole_split(len(found), source, media)})
            rows = [[row for _, row in same] for same in copies]
            examples, group_names = with_copies(examples, group_names, rows)
        split_source = "the data's own"
        if not any(one.split for one in found):
            examples = self._split(examples, class_names, kind)
            split_source = (
                f"{self.validation_fraction:g} of each class for validation and {self.test_fraction:g} for test, "
                f"shuffled by hushprompt with split_seed {self.split_seed}"
            )
        if not any(example.split == "test" for example in examples):
            raise DataError(
                f"{where} has no test examples ({split_source}). Give classes more examples, or say which are for test."
            )
        listing = Listing(
            class_names=class_names,
            examples=examples,
            split_source=split_source,
            domain_names=domain_names,
            client_names=client_names if found[0].client else (),
            group_names=group_names,
        )
        about = About(
            name=(where.stem if where.is_file() else where.resolve().name) or kind,
            title=str(where),
            citation="your own data",
            license="your own data",
        )
        dataset = build(about, listing, source, media, self.on_unreadable)
        copies = find_copies(dataset.splits)
        dataset = dataclasses.replace(dataset, copies=copies, duplicates=self.duplicates, findings=tuple(findings))
        refuse_across_splits(dataset)
        return dataset

    def _grouped(self, found: Sequence[Found], where: Path) -> Sequence[Found]:
        """Return what was found with the groups that paths name, where `group_pattern` says how.

        Raises:
            DataError: the data name groups already, or a path names none.
        """
        if not self.group_pattern:
            return found
        if any(one.group for one in found):
            raise DataError(
                f"{where} names groups, and data.group_pattern finds them in paths. Leave one out; the column is not "
                'read with data.group_column = "".'
            )
        return [one._replace(group=name_in_path(self.group_pattern, one.name)) for one in found]

    def _split(self, examples: list[Example], class_names: tuple[str, ...], kind: str) -> list[Example]:
        """Split by the fractions, and keep the order."""
        order = {example.name: row for row, example in enumerate(examples)}
        dealt = split_per_class(
            examples,
            class_names,
            kind,
            seed=self.split_seed,
            validation=self.validation_fraction,
            test=self.test_fraction,
        )
        return sorted(dealt, key=lambda example: order[example.name])

    def wanted(self) -> tuple[str, ...]:
        """Return the classes that the config lists, in NFC."""
        if self.classes or not self.classes_file:
            return tuple(map(nfc, self.classes))
        return read_lines(Path(self.classes_file).expanduser(), "data.classes_file")


OPTIONAL = {
    "client_column": "client", "split_column": "split", "domain_column": "domain", "group_column": "group",
}  # fmt: skip
"""Columns, or arrays, that are used where the file has them; another name than this default must be there."""


def check_found(found: Sequence[Found], where: Path, *, are_copies_one: bool = False) -> None:
    """Raise DataError unless each example occurs once and has a class, and all or none have client, group and split."""
    if not found:
        raise DataError(f"{where} has no example.")
    for what, field in (("class", "label"), ("domain", "domain"), ("client", "client"), ("group", "group")):
        for name in natural({getattr(one, field) or "" for one in found}):
            check_name(name, what, where)
    seen: dict[str, str] = {}
    for one in found:
        if not one.label:
            raise DataError(f"{where}: {one.name} has no class. Give it one, or take it out.")
        path = one.name if are_copies_one else posixpath.normpath(one.name)
        if path in seen:
            also = "" if seen[path] == one.name else f", the other time as {seen[path]}"
            raise DataError(
                f"{where} lists {one.name} twice{also}. Take one out, or it could be in training and in test."
            )
        seen[path] = one.name
        for what in ("client", "group", "split"):
            first = getattr(found[0], what)
            if bool(getattr(one, what)) != bool(first):
                nameless = one.name if first else found[0].name
                raise DataError(f"{where}: {nameless} has no {what}, others do. Give every example one.")
        if one.split and one.split.lower() not in SPLIT_WORDS:
            raise DataError(
                f"{where}: {one.name} has the split {one.split!r}; allowed: {', '.join(SPLIT_WORDS)}. Or name none for "
                "any example."
            )


def check_name(name: str, what: str, where: Path) -> None:
    """Raise DataError for a name with letters that no text has: line breaks, control characters, bytes of no text."""
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise DataError(
            f"{where} has the {what} {name!a}, which is no text of one line. Name it otherwise; names "
            "of folders and files are to be UTF-8."
        )


def name_classes(
    spelled: Sequence[str], wanted: Sequence[str], where: Path, order: Iterable[str] = ()
) -> tuple[tuple[str, ...], list[int]]:
    """Return class names in label order, and each example's label.

    Args:
        spelled: the class of each example, as the data spells it.
        wanted: the entries of `classes`.
        where: for the error message.
        order: the classes where none are wanted; none: sorted, numbers by value.

    Raises:
        DataError: a class of the data is not wanted.

    >>> name_classes(["red_fox", "cat", "cat"], [], Path("d"))
    (('cat', 'red fox'), [1, 0, 0])
    >>> name_classes(["1", "0"], ["cat", "dog"], Path("d"))
    (('cat', 'dog'), [1, 0])
    >>> name_classes(["n02", "n01"], ["n02=dog", "n01=cat"], Path("d"))
    (('dog', 'cat'), [0, 1])
    """
    present = set(spelled)
    pairs = [entry.partition("=") for entry in wanted]
    pairs = pairs or [(key, "", "") for key in order] or [(key, "", "") for key in natural(present)]
    keys, shown = [key.strip() for key, _, _ in pairs], [(name or key).strip() for key, _, name in pairs]
    if all(label.isdecimal() for label in present) and not present & set(keys):
        keys = [str(place) for place in range(len(keys))]
    labels = {_match(key, present): label for label, key in enumerate(keys)}
    if len(labels) < len(keys):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        who = f"data.classes names a class of {where}" if wanted else f"But for spaces around it, {where} has a class"
        raise DataError(f"{who} twice: {', '.join(twice or sorted(keys))}. Name each once.")
    unknown = natural(present - set(labels))
    if unknown:
        joined = any(mark in key for key in keys for mark in ';\t,"')
        hint = (
            " An entry of data.classes is one class, or spelled=shown, without double quotes; separators join several "
            "into one."
        ) * joined
        raise DataError(
            f"{where} has classes that are not in data.classes: {', '.join(unknown)}. Add them there, or take their "
            f"examples out.{hint}"
        )
    return tuple(name.replace("_", " ") for name in shown), [labels[label] for label in spelled]


def _match(key: str, present: Set[str]) -> str:
    """Return the class of the data that is spelled like `key`, spaces and underscores being equal; else `key`."""
    if key in present:
        return key
    return next((label for label in sorted(present) if plain(label) == plain(key)), key)


def plain(entry: str) -> str:
    """Return the class of an entry of `classes`, with spaces for underscores."""
    return nfc(entry.partition("=")[0].strip()).replace("_", " ")


def spelled_twice(found: Iterable[Found]) -> list[Finding]:
    """Return a finding about names that are written in two Unicode forms, each pair of which is one name."""
    names = {name for one in found for name in (one.label, one.domain, one.client, one.group) if name}
    both = {nfc(name) for name in names if name != nfc(name)} & names
    return finding("unicode_forms", "Names are written in two Unicode forms; each is one name", both)


def text_of(value: Any, where: str, what: str, *, is_class: bool = False) -> str:
    """Return a name as text: text itself, or a whole number, also where it is written as 10.0; "" for none.

    Args:
        value: as a file has it.
        where: for the error message: file and line.
        what: for the error message: the column.
        is_class: whether a number that is not whole is refused; a domain may be called 1.5.

    Raises:
        DataError: it is something else, and no name.

    >>> text_of(10.0, "t.csv, line 2", "label"), text_of("10.0", "t.csv, line 2", "label")
    ('10', '10')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        text = value.strip()
        if whole := WHOLE.fullmatch(text):
            return str(int(whole[1]))
        is_number = NUMBER.fullmatch(text) is not None
        if not is_number and "\n" not in text and not (is_class and NO_CLASS.fullmatch(text)):
            return text
        value = float(text) if is_number else text
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value) and (value.is_integer() or not is_class):
        return str(int(value) if value.is_integer() else value)
    raise DataError(
        f"{where}: the {what} {value!r} is neither text of one line nor a whole number. Write it as either."
    )


def number(words: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Return the distinct words in order, and the place of each word."""
    names = natural(set(words))
    places = {name: place for place, name in enumerate(names)}
    return tuple(names), [places[word] for word in words]


def natural(words: Iterable[str]) -> list[str]:
    """Sort words; if all are numbers, by value.

    >>> natural({"10", "9"}), natural({"b10", "b9"})
    (['9', '10'], ['b10', 'b9'])
    """
    words = list(words)
    if all(word.isdecimal() for word in words):
        return sorted(words, key=int)
    return sorted(words)


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of a JSON text; ValueError if it has an entry twice, of which Python takes the last."""
    content = {nfc(key): value for key, value in pairs}
    if len(content) < len(pairs):
        raise ValueError(f"an entry stands twice in {{{', '.join(key for key, _ in pairs)}}}")
    return content


def required(section: str, **values: str) -> None:
    """Raise ConfigError for a field that has no default that could work."""
    for name, value in values.items():
        if not value:
            raise ConfigError(f"data.{name} must be given for {section}. Example: --set data.{name}=my_data")
