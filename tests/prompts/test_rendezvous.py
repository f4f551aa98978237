import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hushprompt.prompts.rendezvous import Rendezvous


def meet(works):
    """Do works that take a rendezvous and their place, each on a thread of its own."""
    rendezvous = Rendezvous(len(works))

    def do(place):
        try:
            return works[place](rendezvous, place)
        finally:
            rendezvous.leave()

    with ThreadPoolExecutor(len(works)) as pool:
        done = [pool.submit(do, place) for place in range(len(works))]
        rendezvous.answer_until_all_left()
        return done


@pytest.mark.parametrize("seed", range(5))
def test_which_questions_meet_does_not_depend_on_speed(seed):
    met, rng = [], random.Random(seed)

    def answer_all(contents):
        met.append(contents)
        return [-content for content in contents]

    def asks(numbers):
        def work(rendezvous, place):
            given = []
            for number in numbers:
                time.sleep(rng.random() / 200)
                given.append(rendezvous.ask(place, "topic", answer_all, number))
            return given

        return work

    done = meet([asks([1, 2, 3]), asks([]), asks([10]), asks([100, 200])])
    assert [each.result() for each in done] == [[-1, -2, -3], [], [-10], [-100, -200]]
    assert met == [[1, 10, 100], [2, 200], [3]]


def test_topics_are_answered_apart():
    met = []

    def answer_all(contents):
        met.append(contents)
        return contents

    done = meet([lambda r, p, topic=topic: r.ask(p, topic, answer_all, p) for topic in "abba"])
    assert [each.result() for each in done] == [0, 1, 2, 3]
    assert met == [[0, 3], [1, 2]]


def test_an_error_reaches_all_who_asked_and_nobody_else():
    def fail(contents):
        raise ValueError("no answer")

    def twice(rendezvous, place):
        with pytest.raises(ValueError, match="no answer"):
            rendezvous.ask(place, "bad", fail, None)
        return rendezvous.ask(place, "good", list, place)

    def good(rendezvous, place):
        return [rendezvous.ask(place, topic, list, place) for topic in ("good", "good")]

    assert [each.result() for each in meet([twice, twice, good])] == [0, 1, [2, 2]]


def test_who_fails_keeps_nobody_waiting():
    def broken(rendezvous, place):
        raise KeyError(place)

    first, second = meet([broken, lambda rendezvous, place: rendezvous.ask(place, "topic", list, place)])
    assert second.result() == 1
    with pytest.raises(KeyError):
        first.result()
