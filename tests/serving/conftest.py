import pytest

from helpers.served import toy_prompt


@pytest.fixture(scope="package")
def served_prompt(tmp_path_factory):
    """A toy prompt with the guarantee of a simulation."""
    return toy_prompt(tmp_path_factory.mktemp("served"))
