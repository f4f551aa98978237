"""Config files: where they are, the presets that come with the package, and their plain values."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from hushprompt.errors import ConfigError
from hushprompt.user_text import read_toml


def locate(config: Path | None) -> Path:
    """Return the file of a preset's name or of a path; None: the embedded preset."""
    name = config or Path("embedded")
    preset = presets_folder() / f"{name}.toml"
    if not name.exists() and name.suffix == "" and preset.exists():
        return preset
    return name


def presets_folder() -> Path:
    """Return the folder of the package's presets."""
    return Path(str(resources.files("hushprompt") / "config" / "presets"))


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file as plain values.

    Raises:
        ConfigError: the file is missing or no TOML.
    """
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise ConfigError(f"The config file {path} is not valid TOML: {str(error).rstrip('.')}.") from error
