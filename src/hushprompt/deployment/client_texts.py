"""Questions and answers of a client: whether they fit the model is their owner's business alone.

A message with their lengths would be a release that no noise is on. So would be a refusal that depends on the plan as
well: whoever proposes longer and longer contexts would find out how long the longest text is. So a part of the model's
window is the plan's and the rest the texts', and each is checked without the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hushprompt.config.schema import RunConfig
from hushprompt.errors import ConfigError, DataError, ProtocolError
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.texts import TextTokens

SHARE = 4
"""Context and answers of a plan may take one part in so many of the model's window."""


@contextlib.contextmanager
def for_the_owner() -> Iterator[None]:
    """Raise DataError, which the owner alone is told, in the place of ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise DataError(str(error)) from error


def check_plan(model: Any, config: RunConfig) -> None:
    """Raise ProtocolError where a plan wants more of a generative model's window than is left to it."""
    if not isinstance(model, GenerativeModel) or model.class_names:
        return
    most = model.backbone.capabilities.context_window // SHARE
    num_ctx, num_answer = getattr(config.method, "num_ctx", 0), config.evaluation.max_answer_tokens
    if num_ctx + num_answer > most:
        raise ProtocolError(
            f"The plan has num_ctx = {num_ctx} and evaluation.max_answer_tokens = {num_answer}, together more than "
            f"{most}, a part in {SHARE} of this model's window. The rest is for questions and answers."
        )


def check_texts(model: Any, texts: TextTokens) -> None:
    """Raise ConfigError unless texts fit into what no plan can take of the window."""
    most = model.backbone.capabilities.context_window // SHARE
    model.check_window(most, texts.questions.shape[1], texts.answers.shape[1])
