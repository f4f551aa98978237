"""What an operator gets and starts: the files of init, the gate, and the commands of both ends. No Flower process."""

import asyncio
import configparser
import contextlib
import datetime
import importlib
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w
from typer.testing import CliRunner

from hushprompt.cli import lazy
from hushprompt.cli import main as cli
from hushprompt.config import parse as configs
from hushprompt.deployment import api
from hushprompt.deployment.agreement import Agreement, make_offer
from hushprompt.deployment.config import load_client, load_server
from hushprompt.deployment.flower import clientapp, environment, hand_over
from hushprompt.deployment.flower.gate import REFUSAL, Gate, is_worth_a_line
from hushprompt.deployment.operate import client, layout, server, status
from hushprompt.deployment.server_record import ServerRecord
from hushprompt.errors import ConfigError, LinkError
from hushprompt.runs import records

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def folder(tmp_path, toy_values):
    """A trial of two clients, as init writes it."""
    run = {**toy_values, "partition": {"name": "disjoint_classes", "num_clients": 3}}
    layout.write(tmp_path / "fed", layout.Wanted(name="t", clients=("a", "b"), address="127.0.0.1:8000", run=run), NOW)
    return tmp_path / "fed"


def edit(path, section, **changes):
    """Change settings of a TOML file."""
    values = configs.read(path)
    values[section] |= changes
    path.write_text(tomli_w.dumps(values))


def test_init_writes_two_ends_that_fit_together(folder):
    ours = load_server(folder / "server" / "server.toml")
    assert ours.federation.clients == ("a", "b")
    assert ours.federation.quorum == 2, "all clients, unless the operator says fewer"
    assert ours.run.partition.num_clients == 2
    assert ours.run.privacy.noise_source == "secure"
    assert not ours.run.references
    assert server.check_link(ours) == []
    assert sorted(server.public_keys(ours)) == ["a", "b"]
    assert folder.stat().st_mode & 0o077 == 0
    for index, name in enumerate("ab"):
        theirs = load_client(folder / "clients" / name / "client.toml")
        assert (theirs.client.name, theirs.share.client) == (name, index)
        assert theirs.link.superlink == "127.0.0.1:8000"
        assert theirs.owner.require_noise_source == "secure"
        assert client.check_link(theirs) == []


def test_init_says_in_one_line_where_clients_will_trust_the_server(tmp_path, toy_values):
    said = {}
    for clients, privacy in (("ab", {}), ("abc", {}), ("abc", {"noise_at": "server"}), ("abc", {"noise_at": "client"})):
        run = {**toy_values, "partition": {"name": "iid", "num_clients": 3}, "privacy": {"epsilon": 8.0, **privacy}}
        case = f"{len(clients)} {privacy.get('noise_at', '')}"
        api.init(tmp_path / case, [*clients], run=run, say=said.setdefault(case, []).append)
    trusting = said.pop("2 "), said.pop("3 server")
    for lines in trusting:
        (line,) = lines
        assert "sees each client's clipped sum without it" in line
        assert line.endswith('by require_noise_at = "any": "shares" or "client" there would refuse it.')
    assert [*said.values()] == [[], []]


@pytest.mark.parametrize(("unit", "required"), [("example", "any"), ("group", "group"), ("client", "client")])
def test_init_writes_the_unit_of_the_run_as_what_owners_require(tmp_path, toy_values, unit, required):
    privacy = {"epsilon": 8.0, "privacy_unit": unit, "audience": "public"}
    api.init(tmp_path / "fed", ["a", "b"], run={**toy_values, "method": {"name": "promptfl"}, "privacy": privacy})
    assert load_client(tmp_path / "fed" / "clients" / "a" / "client.toml").owner.require_unit == required


def config_of(command, mounts):
    """What a service's command reads, found where its folders are here; the command line must be a real one."""
    program, group, name, *arguments = command.split()
    assert (program.rpartition("/")[2], group) == ("hushprompt", "federation")
    known = lazy.load(f"federation {name}")
    path = Path(str(known.make_context(name, arguments).params["file"]))
    (config,) = (here / path.relative_to(there) for there, here in mounts.items() if path.is_relative_to(there))
    return name, config


def test_services_start_commands_that_exist_on_files_that_exist(folder):
    units, services = {}, {}
    for path in folder.rglob("*.service"):
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str
        unit.read(path)
        service = unit["Service"]
        assert service["ReadWritePaths"] == service["WorkingDirectory"]
        mounts = {service["WorkingDirectory"]: path.parent}
        units["-".join(path.relative_to(folder).parts[:-1])] = config_of(service["ExecStart"], mounts)
    yaml = pytest.importorskip("yaml")
    for service in yaml.safe_load((folder / "compose.yaml").read_text())["services"].values():
        assert service["user"] == f"{os.getuid()}:{os.getgid()}"
        assert service.get("network_mode") in (None, "service:server")
        assert "ports" not in service, "loopback is for this machine alone"
    for name, service in yaml.safe_load((folder / "compose.yaml").read_text())["services"].items():
        mounts = dict(reversed(volume.split(":")) for volume in service["volumes"])
        services[name] = config_of(service["command"], {there: folder / here for there, here in mounts.items()})
        assert service["image"]
    assert services == {name.replace("clients", "client"): config for name, config in units.items()}
    assert sorted(services) == ["client-a", "client-b", "server"]
    for name, config in services.values():
        ends = {"server": (load_server, server.check_link), "client": (load_client, client.check_link)}
        load, check = ends[name]
        assert check(load(config)) == []


def test_init_leaves_keys_and_images_to_the_sites(tmp_path, toy_values):
    wanted = layout.Wanted(
        name="t", clients=("north",), address="server.example.org:443", run=toy_values, classes=("cat", "dog"),
        with_keys=False,
    )  # fmt: skip
    layout.write(tmp_path / "fed", wanted, NOW)
    ours = load_server(tmp_path / "fed" / "server" / "server.toml")
    assert (ours.link.host, ours.link.port) == ("0.0.0.0", 443)
    assert ours.class_names() == ("cat", "dog")
    assert server.public_keys(ours) == {}
    theirs = load_client(tmp_path / "fed" / "clients" / "north" / "client.toml")
    assert theirs.data.root.endswith("images")
    with pytest.raises(ConfigError, match=r"private key .* cannot be read"):
        client.check_link(theirs)


def test_init_leaves_to_the_owner_what_is_read_or_fetched_at_a_client(tmp_path, toy_values):
    backbone = {"name": "open_clip", "architecture": "ViT-B-32", "pretrained": "openai"}
    run = {**toy_values, "backbone": backbone, "data": {"name": "cifar10", "root": str(tmp_path / "data")}}
    layout.write(tmp_path / "fed", layout.Wanted(name="t", clients=("a",), address="127.0.0.1:8000", run=run), NOW)
    theirs = load_client(tmp_path / "fed" / "clients" / "a" / "client.toml")
    assert (theirs.backbone.pretrained, theirs.share.client) == ("openai", 0)
    assert theirs.data.root == str(tmp_path / "data")


def test_init_overwrites_nothing(folder, toy_values):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="not empty"):
        layout.write(folder, layout.Wanted(name="t", clients=("a",), address="h:1", run=toy_values), NOW)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"clients": ("a", "a")}, "each once"),
        ({"clients": ("../a",)}, "client's name"),
        ({"address": "server"}, "HOST:PORT"),
        ({"address": "server:0"}, "port must lie in"),
        ({"name": "a b"}, "federation's name"),
        ({"training": {"dropout_rate": 0.5}}, "dropout_rate simulates clients that fail"),
    ],
)
def test_init_refuses_what_cannot_be(tmp_path, toy_values, changes, reason):
    run = toy_values | {key: changes.pop(key) for key in ("training",) if key in changes}
    wanted = {"name": "t", "clients": ("a",), "address": "h:1", "run": run} | changes
    with pytest.raises(ConfigError, match=reason):
        layout.write(tmp_path / "fed", layout.Wanted(**wanted), NOW)
    assert not any(tmp_path.iterdir())


def test_the_server_is_started_with_tls_keys_a_gate_and_nothing_fetched(folder, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    path = folder / "server" / "server.toml"
    job = server.managed_process(path, load_server(path), print, is_insecure=False)
    assert "hushprompt.deployment.flower.gate" in job.command
    for flag in ("--enable-supernode-auth", "--ssl-certfile", "--disable-runtime-dependency-installation"):
        assert flag in job.command
    assert "--insecure" not in job.command
    assert environment.SAFE.items() <= job.environment.items()
    assert "FORWARDED_ALLOW_IPS" not in job.environment
    job.check()
    edit(path, "link", host="10.0.0.1")
    with pytest.raises(ConfigError, match="which its certificate is not for"):
        server.check_link(load_server(path))
    (folder / "server" / "server.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        job.check()


def test_a_client_is_started_with_tls_a_key_and_its_own_code(folder):
    path = folder / "clients" / "a" / "client.toml"
    said = []
    job = client.managed_process(path, load_client(path), said.append, is_insecure=False)
    assert "--root-certificates" in job.command
    assert "--auth-supernode-private-key" in job.command
    assert "--insecure" not in job.command
    assert "--allow-runtime-dependency-installation" not in job.command
    job.check()  # nobody listens there: the client may start before the server
    assert "cannot be reached" in said[0]
    edit(path, "owner", require_noise_at="shares")
    client.managed_process(path, load_client(path), said.append, is_insecure=False).check()
    assert said[1] == f"Keys pinned of a, b; their fingerprint: {api.fingerprint(path).fingerprint}"
    shutil.rmtree(path.parent / "peers")
    assert "takes part in no run with noise shares" in client.pinned_line(load_client(path))
    own = job.environment["PATH"].split(os.pathsep)[0]
    assert sorted(os.listdir(own)) == sorted([clientapp.REPLACED, *clientapp.REFUSED])
    for name in clientapp.REFUSED:
        assert subprocess.run([f"{own}/{name}"], capture_output=True).returncode == 1
    lines = (folder / "clients/a/store/flwr/bin" / clientapp.REPLACED).read_text().splitlines()
    assert lines[2] == f'{sys.executable} -I -S {hand_over.__file__} "$@"'
    assert lines[-1] == f'exec {sys.executable} -P -m hushprompt.deployment.flower.clientapp "$@"'


def test_insecure_is_for_loopback_alone(folder):
    path, client_path = folder / "server" / "server.toml", folder / "clients" / "a" / "client.toml"
    job = server.managed_process(path, load_server(path), print, is_insecure=True)
    assert "--insecure" in job.command
    assert environment.NODE_NAMES not in job.environment
    assert (
        "--insecure" in client.managed_process(client_path, load_client(client_path), print, is_insecure=True).command
    )
    edit(path, "link", host="0.0.0.0")
    edit(client_path, "link", superlink="server.example.org:8000")
    with pytest.raises(ConfigError, match="--insecure is for trials on one machine"):
        server.managed_process(path, load_server(path), print, is_insecure=True)
    with pytest.raises(ConfigError, match="--insecure is for trials on one machine"):
        client.managed_process(client_path, load_client(client_path), print, is_insecure=True)


def test_keys_of_strangers_and_keys_held_twice_are_refused(folder):
    config = load_server(folder / "server" / "server.toml")
    keys = folder / "server" / "node_keys"
    (keys / "b.pub").write_bytes((keys / "a.pub").read_bytes())
    with pytest.raises(ConfigError, match="a and b have the same key"):
        server.public_keys(config)
    (keys / "b.pub").rename(keys / "mallory.pub")
    with pytest.raises(ConfigError, match="mallory, who is not in"):
        server.public_keys(config)


def test_a_client_that_is_not_let_in_is_told_why():
    assert "its key is not known there" in client.explain(["Exit Code: 305", "[code: 2004] Failed to activate."])
    assert "not one that this client trusts" in client.explain(["certificate: CERTIFICATE_VERIFY_FAILED"])
    assert client.explain(["Killed"]) == ""


def through_gate(scope):
    """Give what a request gets for an answer."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {}

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(app)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("path", "peer", "status_code"),
    [
        ("/v1/control/start-run", "10.0.0.9", 403),
        ("/v1/runtime/acquire-task", "10.0.0.9", 403),
        ("/docs", "10.0.0.9", 403),
        ("/v1/fleet/pull-messages", "10.0.0.9", 200),
        ("/health", "10.0.0.9", 200),
        ("/v1/control/start-run", "127.0.0.1", 200),
        ("/v1/control/start-run", "::1", 200),
        ("/v1/control/start-run", "::ffff:127.0.0.1", 200),  # IPv4 over an IPv6 socket
        ("/v1/control/start-run", "::ffff:10.0.0.9", 403),
        ("/v1/control/start-run", "10.0.0.1", 200),  # from the server's own address
        ("/v1/control/start-run", "nonsense", 403),
    ],
)
def test_other_machines_reach_what_clients_need_and_cannot_start_code(path, peer, status_code):
    sent = through_gate({"type": "http", "path": path, "client": (peer, 5), "server": ("10.0.0.1", 8000)})
    assert sent[0]["status"] == status_code
    assert (sent[-1].get("body") == REFUSAL) == (status_code == 403)


def test_a_websocket_of_another_machine_is_closed_and_the_log_shows_failures_alone():
    place = {"path": "/v1/control/x", "client": ("10.0.0.9", 5), "server": ("10.0.0.1", 8000)}
    sent = through_gate({"type": "websocket", **place})
    assert sent[0]["type"] == "websocket.close"
    for code, is_shown in ((200, False), (403, True)):
        entry = logging.LogRecord("a", 20, "", 0, '%s - "%s %s HTTP/%s" %d', ("h", "POST", "/", "1.1", code), None)
        assert is_worth_a_line(entry) is is_shown


ROUND = {
    "arm": "dp_fpl", "round_index": 1, "seconds": 1.5, "loss": None, "local": None, "neighbor": None,
    "harmonic_mean": None, "worst_client": None, "bytes_up": 768, "bytes_down": 512, "epsilon": {"public": 0.5},
    "cohort_size": 2, "num_clients": 1, "asked": ["a", "b"], "took_part": ["a"],
    "failures": {"b": "no answer by the deadline"}, "header_bytes_up": 9, "header_bytes_down": 9,
}  # fmt: skip


@pytest.fixture
def trained(folder):
    return after_a_round(folder)


def after_a_round(folder):
    """The trial after a round in which b was missing."""
    run, store = folder / "server" / "run", folder / "clients" / "a" / "store"
    config = load_server(folder / "server" / "server.toml")
    offer = make_offer("t", "x1", config.run, config.class_names(), "the backbone")
    agreement = Agreement(**offer.to_json(), clients=("a", "b"), sizes=(20, 30))
    for path, last in ((run, 1), (store / "t" / "x1", 0)):
        path.mkdir(parents=True)
        (path / "agreement.json").write_text(json.dumps(agreement.to_json()))
        charge = {"arm": agreement.arm.label, "round": 1, "clients": [[0, last]]}
        charge |= {} if last else {"spent": {"epsilon": 0.5, "delta": 1e-3}}
        (path / "ledger.jsonl").write_text(json.dumps(charge) + "\n" + '{"torn')
    (run / "records.jsonl").write_text(json.dumps(ROUND) + "\n" + '{"torn')
    refused = {"time": "2026-01-01T00:00:00Z", "client": "b", "node": "7", "round": 0, "reason": "no answer"}
    (run / "refusals.jsonl").write_text(json.dumps(refused) + "\n")
    score = {"num_rounds": 1, "split": "test", "num_images": 9, "accuracy": 0.75, "epsilon": 0.5, "delta": 1e-3}
    (store / "t" / "x1" / "records.jsonl").write_text(json.dumps(score) + "\n")
    (store / "refusals.jsonl").write_text('{"time": "now", "kind": "plan", "reason": "above max_epsilon"}\n')
    return folder


class FakeControl:
    """A SuperLink whose run goes through some states."""

    def __init__(self, *outcomes, active=()):
        self.outcomes, self.active, self.stopped = list(outcomes), list(active), []

    def nodes(self):
        return []

    def start(self, bundle, settings):
        assert (
            settings.keys()
            <= tomllib.loads((bundle / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"].keys()
        )
        self.active, self.settings = ["pending"], settings
        self.on_start()
        return 5

    def on_start(self):
        """Whatever a run does."""

    def stop(self, run_id):
        self.stopped.append(run_id)
        self.outcomes.append("stopped")

    def runs(self):
        if not self.active:
            return []
        outcome = self.outcomes.pop(0) if self.outcomes else ""
        if isinstance(outcome, BaseException):
            raise outcome
        return [
            SimpleNamespace(
                run_id=5, begun="2026-01-01T00:00:00Z", status="finished" if outcome else "running",
                outcome=outcome, details="why", bytes_in=1, bytes_out=2, is_over=bool(outcome),
                is_completed=outcome == "completed",
            )
        ]  # fmt: skip


@pytest.fixture
def command(monkeypatch):
    """Run a command of the federation with a fake SuperLink."""
    monkeypatch.setattr(api, "POLL_S", 0)
    monkeypatch.setattr(api, "DEAD_S", 0.2)
    monkeypatch.setattr(api, "_require", lambda: None)

    def run(control, *arguments):
        monkeypatch.setattr(server, "control", lambda config, is_insecure=False: control)
        return CliRunner().invoke(cli.app, ["federation", *map(str, arguments)])

    return run


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [("completed", 0, "is complete"), ("failed", 1, "failed: why"), ("stopped", 1, "was stopped: why")],
)
def test_the_exit_status_of_run_is_how_the_run_ended(folder, command, outcome, code, words):
    done = command(FakeControl("", "", outcome), "run", folder / "server" / "server.toml")
    assert done.exit_code == code
    assert f"The run {words}" in done.output


def test_a_run_whose_config_is_wrong_is_stopped_and_told(folder, command):
    edit(folder / "server" / "run.toml", "training", num_round=3)
    control = FakeControl("", "failed")
    done = command(control, "run", folder / "server" / "server.toml")
    assert isinstance(done.exception, ConfigError)
    assert "num_round" in str(done.exception)
    assert control.stopped == [5]


def test_a_run_is_asked_for_before_its_config_is_read_and_the_servers_process_never_reads_it(
    folder, command, monkeypatch
):
    path, told, read = folder / "server" / "server.toml", [], api.load_server
    monkeypatch.setattr(api, "load_server", lambda file: told.append("read") or read(file))
    control = FakeControl("", "completed")
    control.on_start = lambda: told.append("asked")
    assert command(control, "run", path).exit_code == 0
    assert told[:2] == ["asked", "read"]
    serve = "from hushprompt.deployment import api; api._keep_running = print; api.serve(sys.argv[1])"
    code = f"import sys; {serve}; assert not {{'torch', 'scipy'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True)


def test_ctrl_c_leaves_the_run_and_stop_ends_it(folder, command):
    path = folder / "server" / "server.toml"
    done = command(FakeControl("", KeyboardInterrupt()), "run", path)
    assert done.exit_code == 130
    assert "The run goes on" in done.output
    control = FakeControl("", active=["running"])
    assert command(control, "stop", path).exit_code == 0
    assert control.stopped == [5]
    with held(folder / "server" / "run"):
        second = command(FakeControl("", active=["running"]), "run", path)
    assert isinstance(second.exception, ConfigError)


@contextlib.contextmanager
def held(folder):
    """A run folder that something works on."""
    folder.mkdir(parents=True, exist_ok=True)
    with records.locked(folder):
        yield


@pytest.mark.parametrize("name", ["run", "check"])
def test_a_run_that_nothing_works_on_is_ended_and_another_begins(folder, command, name):
    control = FakeControl(active=["running"])
    control.on_start = lambda: control.outcomes.__setitem__(slice(None), ["completed"])
    done = command(control, name, folder / "server" / "server.toml")
    assert control.stopped == [5]
    assert "A run that was going on has died" in done.output
    assert control.settings == ({} if name == "run" else {"only-check": True})


def test_a_server_that_starts_ends_the_runs_that_died_with_the_last_one(folder, monkeypatch):
    control = FakeControl("", "", "", active=["running"])
    monkeypatch.setattr(server, "control", lambda config, is_insecure=False: control)
    config = load_server(folder / "server" / "server.toml")
    assert (
        server.end_earlier_runs(config, datetime.datetime(2025, 12, 31, tzinfo=datetime.UTC), is_insecure=False) == []
    )
    assert server.end_earlier_runs(config, NOW, is_insecure=False) == [5]
    assert control.stopped == [5]


def test_run_says_a_refusal_as_soon_as_it_is_written(folder, command):
    refused = {"time": "2026-01-01T00:00:00Z", "client": "b", "node": "7", "reason": "above max_epsilon"}
    run = folder / "server" / "run"
    run.mkdir()
    (run / "refusals.jsonl").write_text(json.dumps({**refused, "reason": "of an earlier run"}) + "\n")
    control = FakeControl("", "", "failed")

    def on_start():
        with (run / "refusals.jsonl").open("a") as file:
            file.write(json.dumps(refused) + "\n")

    control.on_start = on_start
    out = command(control, "run", folder / "server" / "server.toml").output
    assert "b: above max_epsilon" in out
    assert "earlier" not in out


def test_check_shows_what_each_client_says(folder, command):
    run = folder / "server" / "run"
    control = FakeControl("", "completed")
    said = {"sizes": {"a": 20}, "refusals": {"b": "It did not join."}, "guarantees": [], "problem": ""}
    control.on_start = lambda: (run.mkdir(), (run / "check.json").write_text(json.dumps(said)))
    done = command(control, "check", folder / "server" / "server.toml")
    assert done.exit_code == 1
    assert "a, 20 training examples: yes" in done.output
    assert "b: not there. It did not join." in done.output
    (run / "check.json").unlink()
    control = FakeControl("", "failed")
    assert "The clients were not asked." in command(control, "check", folder / "server" / "server.toml").output


def test_the_functions_return_what_the_commands_print(tmp_path, toy_values, monkeypatch):
    readme = api.init(tmp_path / "fed", ["a", "b"], run=toy_values, with_keys=False)
    assert "server.toml" in readme.read_text()
    assert api.key(tmp_path / "node.key") == tmp_path / "node.key.pub"
    certificate, validity = api.renew(tmp_path / "fed")
    assert certificate.exists()
    assert "127.0.0.1" in validity.names
    control, said = FakeControl("", "completed"), []
    monkeypatch.setattr(server, "control", lambda config, is_insecure=False: control)
    monkeypatch.setattr(api, "POLL_S", 0)
    monkeypatch.setattr(api, "_require", lambda: None)
    path = tmp_path / "fed" / "server" / "server.toml"
    done = api.run(path, say=said.append)
    assert done.state.is_completed
    assert (done.rounds, done.num_rounds, done.guarantees) == ([], 3, [])
    assert said[0] == "It begins when enough clients have joined."
    assert said[1].startswith("Noise is added by the server, which sees each client's clipped sum without it: ")
    assert "needs at least 3 clients a round" in said[1]
    assert api.stop(path) == 1
    assert api.status(path).connection.newest_run.run_id == 5
    assert api.status(tmp_path / "fed" / "clients" / "a" / "client.toml").spent == (0, 0)


def assert_says_what_epsilon_means(out):
    """The guarantee for the one round that was charged, of a run that goes on."""
    words = ("for the public", "delta = 0.001", "for one example", "(add_remove)", " 1 release", "accountant")
    assert [word for word in words if word not in out] == []


def test_status_shows_who_took_part_and_what_was_refused(trained, command):
    class Nobody(FakeControl):
        def nodes(self):
            raise LinkError("The SuperLink does not answer.")

    out = command(Nobody(), "status", trained / "server" / "server.toml").output
    assert "does not answer" in out
    assert "a (20 training examples), b (30 training examples)" in out
    assert "round 1 of" in out
    assert "a took part; not b (no answer by the deadline)" in out
    assert "768 bytes up, 512 down" in out
    assert_says_what_epsilon_means(out)
    assert "b in round 1: no answer" in out


def test_status_of_a_client_shows_what_its_owner_has_spent(trained, command):
    edit(trained / "clients" / "a" / "client.toml", "owner", max_epsilon=2.0)
    out = command(FakeControl(), "status", trained / "clients" / "a" / "client.toml").output
    assert "1 round charged, epsilon 0.5" in out
    assert_says_what_epsilon_means(out)
    assert "75.0 % of the own images right after round 1" in out
    assert "epsilon 0.5 of 2" in out
    assert "plan: above max_epsilon" in out
    assert status.client_runs(trained / "nowhere") == []


def test_beside_an_epsilon_of_seeded_noise_stands_that_it_is_a_simulation(folder, command):
    edit(folder / "server" / "run.toml", "privacy", noise_source="seeded")
    after_a_round(folder)
    said = [
        " ".join(command(FakeControl(), "status", folder / file).output.split())
        for file in ("server/server.toml", "clients/a/client.toml")
    ]
    assert "epsilon (simulation) public 0.5" in said[0]
    assert "epsilon 0.5 (simulation) and delta 0.001 set aside" in said[1]
    assert "All runs: epsilon 0.5 (with simulations) of" in said[1]


def test_the_log_of_a_server_says_it_too(monkeypatch):
    pytest.importorskip("flwr")
    from hushprompt.deployment.flower import server_app

    said = []
    monkeypatch.setattr(server_app, "_LOG", SimpleNamespace(info=lambda text, *values: said.append(text % values)))
    for source in ("seeded", "secure"):
        record = {**ROUND, "noise_source": source, "delta": 1e-5}
        server_app.LoggingObserver().on_round(records.from_json(ServerRecord, record))
    assert ["epsilon (simulation) at delta 1e-05: public 0.500" in line for line in said] == [True, False]


@pytest.fixture
def run_clientapp(monkeypatch):
    """Flower's module as this package runs it for a message."""
    pytest.importorskip("flwr")
    from flwr.supernode.runtime import run_clientapp

    command = importlib.import_module("flwr.supernode.cli.flwr_clientapp")  # the package has a function of this name
    replaced = ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn")
    for name in (*replaced, "pull_and_inflate_object_from_tree"):
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))
    monkeypatch.setattr(command, "flwr_clientapp", lambda: None)
    monkeypatch.setattr(clientapp, "PULL_S", 0.05)
    clientapp.main()
    return run_clientapp


def test_a_message_that_never_comes_whole_is_given_up(run_clientapp):
    """As where its server died: the process on standby answers one message after the other."""
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

    end = time.monotonic() + 20

    def never(object_id):
        assert time.monotonic() < end, "it goes on waiting"
        raise ObjectUnavailableError(object_id)

    with pytest.raises(ObjectPullError, match="timeout"):
        run_clientapp.pull_and_inflate_object_from_tree(ObjectTree(object_id="a" * 64), never, print)


def test_a_client_never_runs_code_that_was_sent(run_clientapp):
    """What Flower would install and load from the server's bundle is replaced by the installed package's own app."""
    from hushprompt.deployment.flower.client_app import app

    assert run_clientapp.install_from_fab(b"sent by the server", skip_prompt=True) is None
    load = run_clientapp.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("evil/app", "1.0", "hash") is app


def test_the_commands_of_the_guide_fit_together(tmp_path, monkeypatch):
    """Those that start no process are followed literally; the others must name files that these have made."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "federation.md").read_text()
    (classes,) = re.findall(r"```text\n(cat\n.*?)```", page, re.DOTALL)
    (tmp_path / "classes.txt").write_text(classes)
    sites = {name: tmp_path / "clinics" / "clients" / name for name in ("north", "south", "west")}
    of_sites = ("client.toml", "node.key")
    commands = [
        line.split() for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
    ]
    said = {}
    for words in commands:
        assert words[:2] == ["hushprompt", "federation"]
        file = words[3]
        here = tmp_path / "clinics" if file == "server/server.toml" else tmp_path
        for folder in sites.values() if file in of_sites else [here]:
            monkeypatch.chdir(folder)
            if words[2] in ("init", "key", "fingerprint"):
                done = CliRunner().invoke(cli.app, words[1:])
                assert done.exit_code == 0, done.output
                said.setdefault(words[2], set()).add(done.output)
            else:
                assert words[2] in ("server", "client", "run", "status")
                assert Path(file).exists(), words
        if words[2] == "key":
            for (name, own), place in itertools.product(sites.items(), (*sites.values(), tmp_path / "clinics/server")):
                to = place / ("node_keys" if place.name == "server" else "peers")
                shutil.copy(own / "node.key.pub", to / f"{name}.pub")
    assert {words[2] for words in commands} == {"init", "key", "fingerprint", "server", "client", "run", "status"}
    (printed,) = said["fingerprint"]
    assert "3 clients: north, south, west" in printed
    for folder in sites.values():
        config = load_client(folder / "client.toml")
        assert (config.link.superlink, config.owner.require_noise_at) == ("server.example.org:8000", "shares")
        client.check_link(config)
    ours = load_server(tmp_path / "clinics" / "server" / "server.toml")
    assert sorted(server.public_keys(ours)) == sorted(sites)
    assert (ours.run.privacy.noise_at, ours.why_not_shares) == ("shares", "")
