"""Flower's messages and Grid as a carrier of envelopes: what arrives is what was sent, and nothing else does."""

import dataclasses
import importlib
import inspect
import json
import re
import tomllib

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_PATIENCE

from helpers.local_grid import LocalGrid
from hushprompt.deployment.envelope import Envelope, refusal
from hushprompt.deployment.flower import client_app as client_side
from hushprompt.deployment.flower import environment, messages
from hushprompt.deployment.flower.grid_transport import GridTransport
from hushprompt.deployment.transport import Failure
from hushprompt.errors import ConfigError

REQUEST = Envelope("turn", {"round": 3}, {"context": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(4)})
MAX_BYTES = 10_000
NODES = ["1000", "1001", "1002"]


class Echo:
    """A site that answers with what it was asked."""

    def answer(self, request):
        return dataclasses.replace(request, meta={**request.meta, "answered": True})

    def refuse(self, kind, why):
        return refusal(why)


@pytest.fixture
def site(monkeypatch):
    """A stand-in for the site behind the real ClientApp."""
    site = Echo()
    monkeypatch.setattr(client_side, "client_node", lambda config: site)
    return site


@pytest.fixture
def grid(site):
    return LocalGrid(client_side.client_app(lambda context: None), num_nodes=3)


def quick(grid, **kwargs):
    """A transport whose time passes as fast as it sleeps."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    return GridTransport(grid, clock=lambda: now[0], sleep=sleep, **kwargs)


def ask(grid, nodes=NODES, **kwargs):
    return dict(quick(grid, **kwargs).ask(dict.fromkeys(nodes, REQUEST), 60.0, MAX_BYTES))


def damaged(reply):
    """Turn one bit of the array over, as no checksum of Flower's would notice."""
    data = bytearray(reply.content[messages.ENTRY][messages.ENTRY].data)
    data[-1] ^= 1
    reply.content[messages.ENTRY] = ArrayRecord(
        {messages.ENTRY: Array("uint8", (len(data),), messages.FORM, bytes(data))}
    )
    return reply


def test_an_envelope_comes_through_flower_bit_for_bit(grid):
    answers = ask(grid)
    assert sorted(answers) == NODES
    for answer in answers.values():
        assert answer.to_bytes() == Echo().answer(REQUEST).to_bytes()


def test_a_request_is_worth_nothing_after_the_deadline(grid):
    ask(grid)
    assert grid.ttls == [60.0] * 3


def test_only_nodes_that_are_up_are_online(grid):
    grid.faults[1001] = "offline"
    assert quick(grid).online() == ["1000", "1002"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("gone", "connection is lost"),
        ("silent", "deadline"),
        ("not taken", "did not take it"),
        (damaged, "checksum"),
        (lambda reply: ValueError("what Flower says where it cannot unpack it"), "error at the client: ValueError"),
        (lambda reply: _with_content(reply, RecordDict({"envelope": ConfigRecord({"a": 1})})), "something else"),
        (lambda reply: _with_content(reply, RecordDict()), "something else"),
        (lambda reply: _from_node(reply, 1002), "another node"),
    ],
)
def test_what_goes_wrong_at_one_node_is_its_failure_and_the_others_answer(grid, fault, reason):
    grid.faults[1001] = fault
    answers = ask(grid)
    assert isinstance(answers["1001"], Failure)
    assert reason in answers["1001"].reason
    assert all(isinstance(answers[node], Envelope) for node in ("1000", "1002"))


def test_an_answer_to_an_earlier_request_never_comes_out(grid):
    late = []
    grid.faults[1001] = lambda reply: late.append(reply) or reply
    ask(grid, ["1001"])
    grid.faults[1001] = lambda reply: late[0]
    assert "deadline" in ask(grid, ["1001"])["1001"].reason


def test_an_answer_that_is_too_long_is_not_read(grid):
    answers = dict(quick(grid).ask({"1000": REQUEST}, 60.0, 100))
    assert "at most 100" in answers["1000"].reason


def test_a_client_is_who_its_key_says_it_is(grid, site, monkeypatch):
    names = {"1000": "north", "1001": "south"}
    monkeypatch.setattr(site, "answer", lambda request: Envelope("join", {"client": "north"}))
    assert quick(grid, names=names).online() == ["1000", "1001"]
    answers = ask(grid, ["1000", "1001"], names=names)
    assert answers["1000"].meta["client"] == "north"
    assert "its key is that of 'south'" in answers["1001"].reason


def test_an_error_at_a_client_tells_its_kind_and_nothing_else(grid, site, monkeypatch, caplog):
    def fail(request):
        raise OSError("/data/patient-17.png cannot be read")

    monkeypatch.setattr(site, "answer", fail)
    failure = ask(grid, ["1000"])["1000"]
    assert "OSError" in failure.reason
    assert "patient" not in failure.reason
    assert "patient-17" in caplog.text


def test_a_client_refuses_a_damaged_request_and_stays(grid):
    transport = quick(grid)
    real = grid._push
    grid._push = lambda message: real(damaged(message))
    (answer,) = (answer for _, answer in transport.ask({"1000": REQUEST}, 60.0, MAX_BYTES))
    assert answer.is_refusal
    assert "checksum" in answer.meta["reason"]


def test_the_bundle_names_the_two_apps():
    components = tomllib.loads((environment.BUNDLE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    for name in components.values():
        module, _, attribute = name.partition(":")
        assert hasattr(importlib.import_module(module), attribute)
    assert isinstance(client_side.app, ClientApp)
    assert sorted(path.name for path in environment.BUNDLE.iterdir()) == ["pyproject.toml"]


def test_clients_are_known_to_be_lost_within_ten_seconds_and_contents_stay_in_memory(tmp_path, monkeypatch):
    from flwr.supercore import heartbeat
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
    from flwr.superlink import config_loader
    from flwr.supernode import fleet_http_connection

    from hushprompt.deployment.flower import gate, supernode

    for module, name in (
        (fleet_http_connection, "HEARTBEAT_DEFAULT_INTERVAL"),
        (heartbeat, "HEARTBEAT_DEFAULT_INTERVAL"),
        (heartbeat, "HEARTBEAT_CALL_TIMEOUT"),
        (config_loader, "ObjectStoreFactory"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # afterwards they are as they were
    supernode.beat_often()
    assert HEARTBEAT_PATIENCE * fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL < 10
    waits = heartbeat.HEARTBEAT_DEFAULT_INTERVAL - heartbeat.HEARTBEAT_CALL_TIMEOUT
    assert 0 < waits < fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL
    gate.keep_contents_in_memory()
    objects, links = config_loader.get_objectstore_linkstate_factories(str(tmp_path / "superlink.db"), None)
    assert isinstance(objects.store(), InMemoryObjectStore)
    assert links.objectstore_factory is objects
    assert not (tmp_path / "superlink.db").exists()


def test_processes_start_with_flowers_safe_settings(tmp_path, monkeypatch):
    own = environment.environment(tmp_path, {environment.CLIENT_CONFIG: tmp_path / "client.toml"}, {"PATH": "/bin"})
    assert own["FLWR_TELEMETRY_ENABLED"] == "0"
    assert own["FLWR_DISABLE_UPDATE_CHECK"] == own["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert own["PATH"].endswith(":/bin")
    monkeypatch.delenv(environment.CLIENT_CONFIG, raising=False)
    with pytest.raises(ConfigError, match="is not set"):
        environment.path_of(environment.CLIENT_CONFIG)
    monkeypatch.setenv(environment.CLIENT_CONFIG, own[environment.CLIENT_CONFIG])
    assert environment.path_of(environment.CLIENT_CONFIG) == tmp_path / "client.toml"


def test_names_of_nodes_are_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(environment.NODE_NAMES, raising=False)
    assert environment.node_names() is None
    path = tmp_path / "nodes.json"
    monkeypatch.setenv(environment.NODE_NAMES, str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        environment.node_names()
    path.write_text(json.dumps({"1000": "north"}))
    assert environment.node_names() == {"1000": "north"}


def _with_content(reply, content):
    reply.__dict__["_content"] = content
    return reply


def _from_node(reply, node):
    reply.metadata.__dict__["_src_node_id"] = node
    return reply


def test_a_client_looks_for_messages_often_while_they_come_and_seldom_otherwise(monkeypatch):
    from flwr.supernode import start_client_internal

    from hushprompt.deployment.flower import pace, supernode

    now, waits = [0.0], []
    waiting = pace.Pace(lambda: now[0], waits.append)
    waiting.sleep(3)
    now[0] = pace.AWAKE_S
    waiting.sleep(3)
    waiting.sleep(0.5)  # an answer is made: there was a message
    waiting.sleep(3)
    assert waits == [pace.SOON_S, 3, pace.ANSWER_S, pace.SOON_S]
    monkeypatch.setattr(start_client_internal, "time", start_client_internal.time)
    supernode.look_often()
    assert isinstance(start_client_internal.time, pace.Pace)
    source = inspect.getsource(start_client_internal)
    assert set(re.findall(r"\btime\.(\w+\(.*?\))", source)) == {"sleep(3)", "sleep(0.5)"}, "the waits that are replaced"
