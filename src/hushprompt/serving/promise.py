"""What a prompt that is served promises, and whether its owner allows that much: every caller is its holder."""

from __future__ import annotations

import math

from hushprompt.errors import PrivacyError
from hushprompt.privacy import statements
from hushprompt.runs.prompt_file import PromptHeader
from hushprompt.serving.prompt import NOT_TRAINED, Prompt

HOLDERS = (
    "Whoever can ask this server may learn what its prompt tells of the data that trained it: every caller is a holder "
    "of the prompt, and has the guarantee above."
)
WEAK = 0.95
"""Detection rate above which a guarantee is called too weak: by it alone a test may find nearly all."""


def check_promise(prompt: Prompt, *, max_epsilon: float | None, allow_no_guarantee: bool) -> None:
    """Refuse to serve a prompt that promises less than its owner wants.

    Args:
        prompt: that is to be served.
        max_epsilon: largest epsilon of the holder that is allowed; None: any that is finite.
        allow_no_guarantee: also serve a prompt without a guarantee (epsilon = inf).

    Raises:
        PrivacyError: it promises less, or does not say how much.
    """
    epsilon, said = _epsilon(prompt.header), prompt.privacy
    if epsilon is not None and not epsilon >= 0:
        raise PrivacyError(f"{prompt.path} says that its epsilon is {epsilon}, so it is not served. Write it anew.")
    if max_epsilon is not None:
        if math.isnan(max_epsilon) or max_epsilon < 0:
            raise PrivacyError(f"--max-epsilon must be a number >= 0, got {max_epsilon}.")
        if epsilon is None:
            raise PrivacyError(
                f"{prompt.path} is from a version that wrote its epsilon in a sentence only, so --max-epsilon says "
                f"nothing of it. Read the sentence, and serve it without --max-epsilon if that is enough: {said}"
            )
        if not 0 <= epsilon <= max_epsilon:
            raise PrivacyError(f"This prompt is not served: --max-epsilon is {max_epsilon:g}, and of it holds: {said}")
    if epsilon is not None and math.isinf(epsilon) and not allow_no_guarantee:
        raise PrivacyError(
            f"This prompt is not served: nothing limits what its callers may learn. {said} Train with a finite "
            "epsilon, or serve it all the same with --allow-no-guarantee."
        )


def in_plain_words(prompt: Prompt) -> str:
    """Say in plain sentences what a prompt promises the people whose images, or sounds, trained it."""
    header, epsilon = prompt.header, _epsilon(prompt.header)
    if epsilon == 0:
        return "Nothing in this prompt comes from anybody's private data."
    if epsilon is None or header.delta is None:
        return "What this prompt promises the people whose data trained it is in its statement."
    example = "sound" if header.modality == "audio" else "image"
    one = "client's data" if header.privacy_unit == "client" else example
    if header.privacy_unit == "group":
        one = statements.units("group", header.group_word or "")[0].removeprefix("one ")
    if math.isinf(epsilon):
        return f"Nothing limits what this prompt may tell about a single {one} that trained it."
    rate = statements.detection_rate(epsilon, header.delta, statements.FALSE_ALARMS)
    promise = (
        f"Whoever tests whether a single {one} trained this prompt, and wrongly says yes in "
        f"{statements.FALSE_ALARMS:.0%} of cases, notices that it did in at most {rate:.1%}, whatever else they know."
    )
    if rate > WEAK:
        promise = f"This prompt may tell whether a single {one} trained it: its guarantee is too weak to rule that out."
    simulated = " That is of a simulation: whoever knows the seed can remove its noise."
    return promise + (simulated if header.noise_source == "seeded" else "")


def _epsilon(header: PromptHeader) -> float | None:
    """Return the epsilon of whoever holds a prompt file; None where it is only in the sentence."""
    if header.privacy == NOT_TRAINED:
        return 0.0
    if header.epsilon is None and header.privacy.startswith("No guarantee (epsilon = inf"):
        return math.inf
    return header.epsilon
