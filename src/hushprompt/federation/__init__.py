"""The loop of a federation, what its clients and its server compute, and what they send.

Federations on separate machines are operated by the functions of `hushprompt.deployment.api`, which this package hands
on, so that `hushprompt.federation.serve` and the others are found where one looks for them. Its `simulate` is here
`simulate_deployment`, for `simulate` is the module with the loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hushprompt.deployment.api import check as check
    from hushprompt.deployment.api import fingerprint as fingerprint
    from hushprompt.deployment.api import init as init
    from hushprompt.deployment.api import join as join
    from hushprompt.deployment.api import key as key
    from hushprompt.deployment.api import renew as renew
    from hushprompt.deployment.api import run as run
    from hushprompt.deployment.api import serve as serve
    from hushprompt.deployment.api import simulate as simulate_deployment
    from hushprompt.deployment.api import status as status
    from hushprompt.deployment.api import stop as stop

__all__ = [
    "check", "fingerprint", "init", "join", "key", "renew", "run", "serve", "simulate_deployment", "status", "stop"
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a function of `deployment.api` when it is first used: that room stands above this one."""
    if name in __all__:
        own_name = name.removesuffix("_deployment")
        return getattr(importlib.import_module("hushprompt.deployment.api"), own_name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names alone."""
    return __all__
