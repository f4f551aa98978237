"""Two finished toy runs on the disk, that all tests of the page share and none changes."""

import shutil

import pytest

from helpers.made_runs import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with the runs of two seeds."""
    base = tmp_path_factory.mktemp("finished")
    for seed in (1, 2):
        train(base / f"seed-{seed}", base.parent / "cache", seed=seed)
    return base


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of them that a test may damage."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"
