"""A hostile client ends nobody's run, and a hostile server reads nobody's file: the same over every transport."""

import dataclasses
import json
import tomllib

import pytest
import tomli_w

pytest.importorskip("flwr")

from helpers.deployments import NAMES, Deployment
from helpers.hostile import HOSTILE
from helpers.transports import CARRIERS, over_each_transport
from hushprompt.config import parse as configs
from hushprompt.config.schema import RuntimeConfig
from hushprompt.data.readers.folder import Folder
from hushprompt.deployment import agreement
from hushprompt.deployment.agreement import make_offer, version
from hushprompt.deployment.config import ClientSection, load_client
from hushprompt.deployment.envelope import Envelope, refusal
from hushprompt.deployment.flower import client_app as client_side
from hushprompt.deployment.transport import Failure, answer_bytes
from hushprompt.errors import ConfigError
from hushprompt.federation.planning import plan_arms
from hushprompt.models.open_clip import OpenClip
from hushprompt.models.transformers import Transformers

TRANSPORTS = tuple(CARRIERS)


@pytest.fixture(autouse=True)
def own_nodes(monkeypatch):
    """The helper puts its nodes in the place of Flower's; afterwards they are as they were."""
    monkeypatch.setattr(client_side, "client_node", client_side.client_node)


@pytest.fixture
def values(toy_values):
    return {**toy_values, "references": [], "training": {"num_rounds": 1}}


class Echo:
    """A client that answers what it was asked."""

    def answer(self, request):
        return request

    def refuse(self, kind, why):
        return refusal(why)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_hostile_answer_is_a_failure_of_its_sender_alone(transport):
    carrier = CARRIERS[transport](dict.fromkeys(NAMES, Echo()))
    requests = dict.fromkeys(carrier.online(), Envelope("turn", {"round": 0}))
    for name, data in HOSTILE.items():
        carrier.change = lambda answer, data=data: data or b"?"
        ann, bob, cyd = (answer for _, answer in sorted(carrier.ask(requests, 9.0, 10**6)))
        assert isinstance(bob, Failure), name
        assert ann == cyd == requests[carrier.online()[0]]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_goes_on_without_a_client_that_becomes_hostile(values, tmp_path, transport):
    values["training"] = {"num_rounds": 3}
    deployed = over_each_transport(values, tmp_path, transport)
    sent = iter([None, None, HOSTILE["nested in a value"], HOSTILE["float8"], HOSTILE["a number of 400 digits"]])
    deployed.carrier.change = lambda data: next(sent, None)
    assert [record.took_part for record in deployed.serve()] == [["ann", "cyd"]] * 3
    assert [line["client"] for line in deployed.lines("server", "refusals.jsonl")] == ["bob"] * 3


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("message", ["nested in a value", "float8", "a number of 400 digits"])
def test_a_hostile_answer_to_the_first_message_keeps_its_sender_out_alone(values, tmp_path, transport, message):
    deployed = over_each_transport(values, tmp_path, transport)
    deployed.carrier.change = lambda data: HOSTILE[message]
    assert [record.asked for record in deployed.serve()] == [["ann", "cyd"]]


@pytest.mark.parametrize("size", [10**18, 1_000_001, 0, -5, True, 24.0, "24", None, [24]])
def test_a_client_that_lies_about_its_size_is_left_out(values, tmp_path, size):
    deployed = over_each_transport(values, tmp_path, "in process")
    deployed.carrier.change = lambda data: saying(data, "join", num_examples=size)
    assert [record.asked for record in deployed.serve()] == [["ann", "cyd"]]
    assert any("1 to 1000000" in reason for reason in deployed.reasons())


def test_a_size_with_which_there_is_no_plan_leaves_out_its_client_alone(values, tmp_path, monkeypatch):
    def plan(config, sizes, classes, num_late):
        if 7 in sizes:
            raise ConfigError("delta is too large for so many.")
        return plan_arms(config, sizes, classes, num_late)

    monkeypatch.setattr(agreement, "plan_arms", plan)
    deployed = over_each_transport(values, tmp_path, "in process")
    deployed.carrier.change = lambda data: saying(data, "join", num_examples=7)
    assert [record.asked for record in deployed.serve()] == [["ann", "cyd"]]
    assert any("there is no plan: delta is too large" in reason for reason in deployed.reasons())


def test_an_undeclared_field_is_refused_and_never_sent(values, tmp_path):
    deployed = over_each_transport(values, tmp_path, "in process")
    deployed.carrier.change = lambda data: saying(data, "turn", loss=0.25)
    assert [record.took_part for record in deployed.serve()] == [["ann", "cyd"]]
    site = deployed.site("ann")
    site._handlers["join"] = lambda request: Envelope("join", {"client": "ann", "num_positive": 3})
    assert site.answer(Envelope("join")).is_refusal


def saying(data, kind, **meta):
    """Bob's answer of a kind with other fields; other answers as they are."""
    answer = Envelope.from_bytes(data, 10**9)
    return dataclasses.replace(answer, meta={**answer.meta, **meta}).to_bytes() if answer.kind == kind else None


class Server:
    """Whoever writes offers to ann."""

    def __init__(self, values, tmp_path, **client):
        self.deployed = Deployment(values, tmp_path)
        self.site = self.deployed.site("ann", **client)
        config = self.deployed.config
        backbone = config.run.backbone.load().fingerprint
        self.offer = make_offer("trial", "run-1", config.run, config.class_names(), backbone)

    def offered(self, sections=None, **changes):
        """What ann answers to an offer with other sections of the run config, or other fields."""
        text = tomli_w.dumps({**tomllib.loads(self.offer.config), **sections}) if sections else self.offer.config
        offer = {**self.offer.to_json(), "config": text, **changes}
        return self.site.answer(Envelope("join", {**version(), "offer": offer}))

    @property
    def written(self):
        path = self.site.store / "refusals.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def server(values, tmp_path):
    return Server(values, tmp_path)


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "open_clip", "architecture": "ViT-B-32", "checkpoint": "/srv/evil.pt"},
        {"name": "open_clip", "architecture": "ViT-B-32", "pretrained": "openai"},
        {"name": "open_clip", "architecture": "hf-hub:evil/model"},
        {"name": "open_clip", "architecture": "local-dir:/home"},
        {"name": "transformers", "model": "evil/model"},
        {"name": "clap", "model": "/etc"},
    ],
)
def test_a_model_of_files_is_not_looked_for_on_the_servers_word(server, monkeypatch, backbone):
    for cls in (OpenClip, Transformers):
        monkeypatch.setattr(cls, "load", lambda self: pytest.fail("loaded"))
    answer = server.offered({"backbone": backbone})
    assert "has to choose it, as [backbone] in client.toml" in answer.meta["reason"]
    assert len(server.written) == 1


def test_the_owners_own_backbone_is_loaded_whatever_the_server_names(values, tmp_path):
    server = Server(values, tmp_path, backbone=configs.choose("backbone", {"name": "toy"}))
    assert server.offered({"backbone": {"name": "transformers", "model": "evil/model"}}).kind == "join"


@pytest.mark.parametrize("data", [{"name": "folder", "root": "/etc"}, {"name": "cifar10", "root": "/srv"}])
def test_data_are_not_looked_for_where_the_server_says(server, monkeypatch, data):
    monkeypatch.setattr(Folder, "load", lambda self: pytest.fail("read"))
    assert "names them as [data]" in server.offered({"data": data}).meta["reason"]
    assert len(server.written) == 1


def test_a_share_of_the_owners_own_data_is_taken_whatever_the_server_names(values, tmp_path):
    server = Server(values, tmp_path, data=configs.choose("data", {"name": "toy"}))
    assert server.offered({"data": {"name": "folder", "root": "/etc"}}).meta["num_examples"] == 24


@pytest.mark.parametrize("name", ["flwr", "FLWR", "cache", "refusals.jsonl", "bin", "nul", "dot."])
def test_names_that_mean_something_are_nobodys(server, name):
    for field in ("federation", "run"):
        assert "meaning of its own" in server.offered(**{field: name}).meta["reason"]
    with pytest.raises(ConfigError, match="meaning of its own"):
        ClientSection(name=name, store="store")
    assert sorted(path.name for path in server.site.store.iterdir()) == ["refusals.jsonl"]


@pytest.mark.parametrize("message", HOSTILE)
def test_a_client_refuses_a_hostile_request_writes_it_down_and_stays(server, message):
    assert answer_bytes(server.site, HOSTILE[message]).is_refusal
    assert [line["kind"] for line in server.written] == ["message"]
    assert server.offered().kind == "join"


def test_every_refusal_is_one_written_line_whatever_the_message_says(server):
    texts = ("seed = " + "[" * 9000, "seed = ]", "\x1b[31m")
    answers = [server.offered(config=text) for text in texts]
    answers.append(server.site.answer(Envelope("\x1b[31mkind\n" * 500, {"round": {"a": []}, "run": "x\ny" * 900})))
    answers.append(server.site.answer(Envelope("plan", {**version(), "agreement": {"clients": 5}})))
    answers.append(server.site.answer(Envelope("turn", {"federation": "trial", "run": 7})))
    assert all(answer.is_refusal for answer in answers)
    assert len(server.written) == len(answers)
    for line in server.written:
        assert all(len(text) <= 1000 and text.isprintable() for text in line.values() if isinstance(text, str))


def test_what_nobody_expected_is_refused_without_a_word_of_the_data(server, monkeypatch, caplog):
    monkeypatch.setattr(server.site, "_open_model", lambda offer: {}["patient-17"])
    assert server.offered().meta["reason"] == "This client cannot do that now; its owner can see why."
    assert "patient-17" in server.written[0]["reason"]


def test_a_client_writes_for_a_share_of_files_what_its_owner_has(tmp_path):
    path = tmp_path / "client.toml"
    sections = {"client": {"name": "ann", "store": "store"}, "owner": {"max_epsilon": 1.0}, "share": {"client": 0}}
    path.write_text(tomli_w.dumps({**sections, "data": {"name": "cifar10", "root": "data"}}))
    assert load_client(path).data.root == str(tmp_path / "data")
    assert load_client(path).runtime == RuntimeConfig()
    assert NAMES[0] == load_client(path).client.name
