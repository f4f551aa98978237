"""Virtual environments that hold nothing but some packages and what these declare to need."""

import importlib.metadata
import os
import subprocess
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def linked(folder, *names):
    """Make an environment without pip that has links to packages of this one; return its interpreter."""
    venv.create(folder, symlinks=True)
    python = Path(folder) / "bin" / "python"
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    for distribution in needed(names).values():
        for file in distribution.files or []:
            place = packages / file
            if ".." not in file.parts and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(file.locate())
    return python


def needed(names):
    """Return packages and all that they need, by their canonical names, as their metadata say."""
    found, waiting = {}, [*names]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            requirements = map(Requirement, found[name].requires or [])
            waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def contents(python):
    """Return the canonical names of all that is installed in an environment, where nothing of ours can be imported."""
    for name in ("torch", "hushprompt"):
        done = _run(python, "-c", f"import {name}")
        assert f"No module named '{name}'" in done.stderr, done
    names = "import importlib.metadata as m; print(*(one.metadata['Name'] for one in m.distributions()))"
    return {canonicalize_name(name) for name in lines(python, "-c", names)[0].split()}


def lines(python, *arguments):
    """Return what a program prints in an environment."""
    done = _run(python, *arguments)
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


def _run(python, *arguments):
    """Run an interpreter without what Python reads from its surroundings."""
    command = [str(part) for part in (python, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=_plain(), check=False)


def _plain():
    """Return this process's surroundings without what Python itself reads from them."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
