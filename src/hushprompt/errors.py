"""The exceptions a caller may want to catch; everything else is a plain ValueError or a bug."""

from __future__ import annotations


class HushpromptError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(HushpromptError, ValueError):
    """A setting is wrong or impossible; the message says what is allowed and what to do."""


class PrivacyError(ConfigError):
    """A configuration lies outside the privacy theorem, so no epsilon could be claimed for it."""


class DataError(HushpromptError):
    """A file or folder of data, weights or results is missing, damaged or not what it should be."""


class ResumeError(HushpromptError):
    """A run folder cannot be resumed, or a new run would overwrite one."""


class ProtocolError(HushpromptError):
    """A message of a federation is malformed, or outside what was agreed; it is refused and has no effect."""


class LinkError(HushpromptError):
    """The server of a federation cannot be reached, or does not do what its operator asks."""
