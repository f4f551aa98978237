"""The pages that are made from the code say what the code says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_pages_that_are_made_from_the_code_are_in_step_with_it():
    command = [sys.executable, ROOT / "tools" / "reference.py", "--check"]  # without the tests' type checks
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_setting_says_what_it_means():
    lines = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.startswith("| `") and not line[:-1].rpartition("|")[2].strip()]
