import torch

from helpers.in_process import InProcess
from hushprompt.deployment.envelope import Envelope, refusal
from hushprompt.deployment.transport import Failure


class Echo:
    def answer(self, request):
        return Envelope("echo", request.meta, request.tensors)

    def refuse(self, kind, why):
        return refusal(why)


class Broken(Echo):
    def answer(self, request):
        raise RuntimeError("what is in the data")


class Damaging(InProcess):
    def deliver(self, node, data):
        return super().deliver(node, data)[:-1]


def ask(transport, max_bytes=10**6):
    request = Envelope("turn", {"round": 1}, {"a": torch.arange(3.0)})
    return dict(transport.ask(dict.fromkeys(transport.online(), request), 1.0, max_bytes))


def test_every_node_that_is_asked_answers():
    answers = ask(InProcess({"a": Echo(), "b": Echo()}, num_threads=2))
    assert list(answers) == ["a", "b"]
    assert all(answer.kind == "echo" and answer.meta == {"round": 1} for answer in answers.values())


def test_an_error_at_a_client_is_a_failure_that_tells_nothing_of_its_data():
    answers = ask(InProcess({"a": Echo(), "b": Broken()}))
    assert answers["a"].kind == "echo"
    assert answers["b"] == Failure("error at the client: RuntimeError")


def test_damaged_and_oversized_answers_are_failures():
    assert "checksum" in ask(Damaging({"a": Echo()}))["a"].reason
    assert "at most 10" in ask(InProcess({"a": Echo()}), max_bytes=10)["a"].reason
