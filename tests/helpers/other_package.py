"""A package of somebody else with a method, installed in a folder of its own."""

import contextlib
import importlib
import os
import sys

from hushprompt.registry import METHODS

MODULE = '''
"""DP-FPL whose server smooths what is released; the clients know nothing of that."""

from dataclasses import dataclass

import torch

from hushprompt.methods.context import ContextState
from hushprompt.methods.dp_fpl import DPFPL


@dataclass(frozen=True)
class SmoothedState(ContextState):
    velocity: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Smoothed(DPFPL):
    """The `method` section of a method of another package."""

    title = "Smoothed DP-FPL"

    def init(self, model, rng):
        shared, personal = super().init(model, rng)
        return SmoothedState(shared.context, shared.optimizer, torch.zeros_like(shared.context)), personal

    def server_step(self, shared, released):
        velocity = 0.5 * shared.velocity + released
        moved = super().server_step(shared, velocity)
        return SmoothedState(moved.context, moved.optimizer, velocity)
'''


@contextlib.contextmanager
def other_package(folder):
    """Install the package for this process and those that it starts; its method is called "smoothed"."""
    info = folder / "smoothing-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "smoothing.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smoothing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hushprompt.methods]\nsmoothed = smoothing:Smoothed\n")
    variable = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), variable]))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("smoothing", None)
        METHODS._classes.pop("smoothed", None)
        os.environ.pop("PYTHONPATH")
        if variable is not None:
            os.environ["PYTHONPATH"] = variable
