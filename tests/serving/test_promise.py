"""A prompt is served only if it promises what its owner wants, and the page says what that is."""

import dataclasses
import json
import math

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hushprompt as hp
from helpers.served import toy_prompt
from hushprompt.errors import PrivacyError
from hushprompt.runs.prompt_file import FORMAT
from hushprompt.serving.promise import check_promise, in_plain_words


def of(prompt, **header):
    """Return a prompt that says something else of itself."""
    return dataclasses.replace(prompt, header=dataclasses.replace(prompt.header, **header))


def check(prompt, max_epsilon=None, allow_no_guarantee=False):
    check_promise(prompt, max_epsilon=max_epsilon, allow_no_guarantee=allow_no_guarantee)


def test_a_file_has_the_numbers_of_its_sentence(served_prompt):
    header = served_prompt.header
    assert header.format == FORMAT
    assert header.epsilon == pytest.approx(8, abs=1e-2)
    assert (header.delta, header.privacy_unit, header.noise_source) == (1e-3, "example", "seeded")
    assert header.privacy.startswith(f"epsilon = {header.epsilon:.4g} (simulation) at delta = {header.delta:g} ")


def test_more_than_the_owner_allows_is_not_served(served_prompt):
    check(served_prompt, max_epsilon=8.0)
    check(served_prompt)
    with pytest.raises(
        PrivacyError, match=r"--max-epsilon is 4, and of it holds: epsilon = 7.999 \(simulation\) at delta"
    ):
        check(served_prompt, max_epsilon=4.0)
    with pytest.raises(PrivacyError, match="a number >= 0"):
        check(served_prompt, max_epsilon=math.nan)


@pytest.mark.parametrize("epsilon", [math.nan, -1.0, -math.inf])
@pytest.mark.parametrize("max_epsilon", [None, 0.0, 8.0])
def test_an_epsilon_that_is_none_is_not_served(served_prompt, epsilon, max_epsilon):
    with pytest.raises(PrivacyError, match=f"says that its epsilon is {epsilon}, so it is not served"):
        check(of(served_prompt, epsilon=epsilon), max_epsilon=max_epsilon, allow_no_guarantee=True)


def test_without_a_guarantee_it_is_served_on_demand_alone(tmp_path):
    prompt = toy_prompt(tmp_path, privacy={"epsilon": math.inf, "delta": 1e-3})
    assert prompt.header.epsilon == math.inf, "JSON has it as a word"
    with pytest.raises(PrivacyError, match=r"nothing limits .* No guarantee \(epsilon = inf.*--allow-no-guarantee"):
        check(prompt)
    with pytest.raises(PrivacyError, match="--max-epsilon is 100"):
        check(prompt, max_epsilon=100, allow_no_guarantee=True)
    check(prompt, allow_no_guarantee=True)
    assert in_plain_words(prompt) == "Nothing limits what this prompt may tell about a single image that trained it."
    with pytest.raises(PrivacyError, match="--allow-no-guarantee"):
        check(of(prompt, epsilon=None, delta=None))


def test_a_file_of_an_older_version_cannot_be_held_against_a_number(served_prompt, tmp_path):
    old = served_prompt.path
    with safe_open(old, "pt") as file:
        values = json.loads(file.metadata()["hushprompt"])
    for name in ("epsilon", "delta", "privacy_unit"):
        del values[name]
    save_file(load_file(old), tmp_path / "old.safetensors", {"hushprompt": json.dumps(values)})
    prompt = hp.load_prompt(tmp_path / "old.safetensors")
    check(prompt)
    with pytest.raises(PrivacyError, match=r"in a sentence only.*without --max-epsilon if that is enough: epsilon = 7"):
        check(prompt, max_epsilon=100)
    assert "is in its statement" in in_plain_words(prompt)


def test_what_nobodys_data_trained_is_free_to_serve(served_prompt):
    zero_shot = served_prompt.zero_shot()
    check(zero_shot, max_epsilon=0)
    assert in_plain_words(zero_shot) == "Nothing in this prompt comes from anybody's private data."
    check(of(served_prompt, epsilon=0.0), max_epsilon=0)


def test_the_plain_sentence_has_a_number_and_no_epsilon(served_prompt):
    strong = in_plain_words(of(served_prompt, epsilon=1.0, delta=1e-5, noise_source="secure"))
    assert strong == (
        "Whoever tests whether a single image trained this prompt, and wrongly says yes in 1% of cases, notices that "
        "it did in at most 2.7%, whatever else they know."
    )
    assert "single client's data" in in_plain_words(of(served_prompt, privacy_unit="client", epsilon=1.0))
    assert "single sound" in in_plain_words(of(served_prompt, modality="audio", epsilon=1.0))
    weak = in_plain_words(served_prompt)
    assert "too weak to rule that out" in weak
    assert weak.endswith("That is of a simulation: whoever knows the seed can remove its noise.")
    assert "epsilon" not in strong + weak
