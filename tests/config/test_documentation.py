import dataclasses
from dataclasses import dataclass, field

from hushprompt.config.documentation import Setting, settings_of


@dataclass(frozen=True)
class Below:
    first: int
    """One,
    over two lines."""
    second: tuple[int, ...] = field(default_factory=lambda: (1, 2))


@dataclass(frozen=True)
class Above(Below):
    """A class."""

    second: tuple[int, ...] = ()
    """Two."""

    @property
    def third(self):
        """No field."""


def test_fields_have_the_strings_below_them_and_their_bases_own():
    assert settings_of(Above) == [
        Setting("first", dataclasses.MISSING, "One, over two lines."),
        Setting("second", (), "Two."),
    ]
    assert settings_of(Below)[1] == Setting("second", (1, 2), "")


def test_a_class_without_a_source_has_no_strings():
    found = {}
    exec("from dataclasses import dataclass\n@dataclass\nclass Typed:\n    x: int = 1\n    'One.'\n", found)
    assert settings_of(found["Typed"]) == [Setting("x", 1, "")]
