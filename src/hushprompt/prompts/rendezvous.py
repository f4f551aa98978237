"""Threads that wait for each other with what they ask, so that all of it is answered at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

AnswerAll = Callable[[Sequence[Any]], Sequence[Any]]
"""From the questions of several threads, in order of their places, to one answer each."""


@dataclass(eq=False)
class _Question:
    """What one thread waits for."""

    place: int
    topic: Hashable
    answer_all: AnswerAll
    content: Any
    answer: Any = None
    error: BaseException | None = None
    is_answered: bool = False


class Rendezvous:
    """A fixed number of threads, each with a place, that ask and at some time leave; one more thread answers.

    Questions are answered as soon as every thread that has not left has asked one. So which ones meet follows from
    what the threads do, and never from how fast they are.
    """

    def __init__(self, num_threads: int) -> None:
        """Wait for so many threads."""
        self._num_inside = num_threads
        self._asked: list[_Question] = []
        self._condition = threading.Condition()

    def ask(self, place: int, topic: Hashable, answer_all: AnswerAll, content: Any) -> Any:
        """Return the answer to a question.

        Args:
            place: of the asking thread.
            topic: questions of one topic are answered together.
            answer_all: what answers those of this topic; an error of it is raised in every thread that asked.
            content: the question.
        """
        question = _Question(place, topic, answer_all, content)
        with self._condition:
            self._asked.append(question)
            self._condition.notify_all()
            self._condition.wait_for(lambda: question.is_answered)
        if question.error is not None:
            raise question.error
        return question.answer

    def leave(self) -> None:
        """Ask nothing more; nobody waits for this thread any longer."""
        with self._condition:
            self._num_inside -= 1
            self._condition.notify_all()

    def answer_until_all_left(self) -> None:
        """Answer, in the calling thread, whatever is asked."""
        with self._condition:
            while True:
                self._condition.wait_for(lambda: len(self._asked) == self._num_inside)
                if not self._num_inside:
                    return
                asked, self._asked = sorted(self._asked, key=lambda question: question.place), []
                for topic in dict.fromkeys(question.topic for question in asked):
                    _answer([question for question in asked if question.topic == topic])
                self._condition.notify_all()


def _answer(questions: Sequence[_Question]) -> None:
    """Answer questions of one topic, or give all of them the error."""
    try:
        answers = questions[0].answer_all([question.content for question in questions])
        for question, answer in zip(questions, answers, strict=True):
            question.answer = answer
    except BaseException as error:
        for question in questions:
            question.error = error
    for question in questions:
        question.is_answered = True
