"""Every mutant is caught, by a check that passes where nothing is broken.

A check is a test of its own file, too. Where that is run in the same session, it is not run on healthy code once more.
"""

import _pytest.outcomes
import pytest

from mutants.mutant_list import MUTANTS, TESTS, table

CHECKS = list({(one.check.label, repr(one.check.values)): one.check for one in MUTANTS}.values())
NOTICED = (AssertionError, _pytest.outcomes.Failed)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.label.rpartition("::")[2])
def test_the_check_passes_on_healthy_code(check, request):
    if not any(is_run_by(item, check) for item in request.session.items):
        check.run(request)


def is_run_by(item, check):
    """Whether a test of this session is the check, with the same values and no fixtures of its file's own."""
    if (item.path, getattr(item, "originalname", None)) != (TESTS / check.path, check.function):
        return False
    params = item.callspec.params if hasattr(item, "callspec") else {}
    is_same = {name: repr(value) for name, value in params.items()} == {k: repr(v) for k, v in check.values.items()}
    return is_same and not any(hasattr(item.module, name) for name in item.fixturenames)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_caught(mutant, request, monkeypatch):
    mutant.check.load()  # before the code is broken, so that the names it imported are broken too
    mutant.apply(monkeypatch)
    try:
        mutant.check.run(request)
    except NOTICED:
        return
    pytest.fail(f"{mutant.name} survives: {mutant.check.label} passes although {mutant.what}.")


def test_there_are_many_and_the_page_lists_them():
    assert len(MUTANTS) >= 30
    assert len({one.name for one in MUTANTS}) == len(MUTANTS)
    page = (TESTS.parent / "docs" / "mutants.md").read_text()
    assert table() in page, "run `python tests/mutants/mutant_list.py` and put its table into docs/mutants.md"
