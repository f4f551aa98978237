"""One release of class statistics from separate machines: two turns, resumable, classes declared by the plan."""

import dataclasses
import functools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hushprompt as hp
from helpers.deployments import NAMES, Deployment, Killed, declared
from helpers.runs import TOY
from helpers.toy_metric import toy_metric
from hushprompt.audits.verify import verify
from hushprompt.deployment import coordinator, gains
from hushprompt.deployment import late as late_clients
from hushprompt.deployment.agreement import read_agreement, version
from hushprompt.deployment.coordinator import Coordinator
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.operate import status
from hushprompt.errors import ConfigError, DataError, ProtocolError, ResumeError
from hushprompt.federation.client import Client
from hushprompt.federation.setup import make_partition
from hushprompt.reporting import figures, page
from hushprompt.runs import records

VALUES = {
    **TOY,
    "method": {"name": "class_statistics", "metric": toy_metric(), "class_prior": 4.0},
    "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "server"},
}


def load_state(deployed):
    return load_file(deployed.folder("server") / "checkpoint" / "state.safetensors")


def deployment(tmp_path, **federation):
    return Deployment(VALUES, tmp_path, **{"client_classes": declared(VALUES), **federation})


@pytest.mark.parametrize("noise_at", ["client", "server"])
def test_a_server_that_was_killed_between_the_messages_goes_on_to_the_same_prompts(tmp_path, monkeypatch, noise_at):
    privacy = {**VALUES["privacy"], "noise_at": noise_at, "audience": "public"}
    ends = {
        name: Deployment({**VALUES, "privacy": privacy}, tmp_path / name, client_classes=declared(VALUES))
        for name in ("whole", "killed")
    }
    ends["whole"].serve()
    save, count = coordinator.save_state, iter(range(9))

    def killed(folder, state):
        if state.step == 1 and next(count) == 0:
            save(folder, state)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "save_state", killed)
        with pytest.raises(Killed):
            ends["killed"].serve()
    asked = [len(ends["killed"].lines(name, "ledger.jsonl")) for name in NAMES]
    ends["killed"].serve()
    assert asked == [len(ends["killed"].lines(name, "ledger.jsonl")) for name in NAMES] == [1, 1, 1]
    prompts = [one.prompts() for one in ends.values()]
    assert prompts[0].keys() == prompts[1].keys() >= {"global.safetensors", "client-000.safetensors"}
    for name, tensors in prompts[0].items():
        assert all(torch.equal(tensors[key], prompts[1][name][key]) for key in tensors), name
    for name in ("server", *NAMES):
        assert not verify(ends["killed"].folder(name)).differences


def test_a_client_with_an_image_of_an_undeclared_class_is_told_and_its_server_learns_nothing(tmp_path, caplog):
    """A refusal would tell of the image, and a server that declares other classes each time would learn which."""
    classes = declared(VALUES)
    moved = {**classes, "bob": classes["bob"][1:], "ann": classes["ann"] + classes["bob"][:1]}
    deployed = deployment(tmp_path, client_classes=moved)
    deployed.serve()
    (line,) = [record.getMessage() for record in caplog.records if "declared not to have" in record.getMessage()]
    assert f"{classes['bob'][0]} at bob" in line
    assert deployed.reasons() == []
    assert deployed.lines("server", "records.jsonl")[0]["took_part"] == list(NAMES)


def test_a_simulations_declaration_is_not_taken_into_a_federation(tmp_path):
    with pytest.raises(ConfigError, match=r"declares classes in server.toml, by client: federation.client_classes"):
        Deployment({**VALUES, "data": {"name": "toy", "client_classes": [[0]]}}, tmp_path)


def test_what_is_declared_is_agreed_on_and_cannot_change(tmp_path):
    classes = declared(VALUES)
    deployed = deployment(tmp_path, client_classes=dict(reversed([(k, v[::-1]) for k, v in classes.items()])))
    deployed.serve()
    agreement = read_agreement(json.loads((deployed.folder("server") / "agreement.json").read_text()))
    names = agreement.class_names
    assert [tuple(names[label] for label in own) for own in agreement.client_classes] == list(classes.values())
    assert agreement == read_agreement(records.read_json(deployed.folder("bob") / "agreement.json"))
    with pytest.raises(ResumeError, match="belongs to another config"):
        deployed.serve(client_classes={})
    plain = dataclasses.replace(agreement, client_classes=())
    assert plain.digest != agreement.digest
    assert "client_classes" not in plain.to_json(), "agreements of earlier versions keep their digest"


def killed(*_, **__):
    """What a function does whose process ends."""
    raise Killed


def joined_late(tmp_path, noise_at="client", late="cyd"):
    """A federation whose release two clients made, and one that comes when it is over."""
    privacy = {**VALUES["privacy"], "noise_at": noise_at, "audience": "public"}
    deployed = Deployment({**VALUES, "privacy": privacy}, tmp_path, client_classes=declared(VALUES), min_clients=2)
    node = deployed.carrier.nodes.pop(late)
    deployed.serve()
    deployed.carrier.nodes[late] = node
    return deployed


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """By who adds the noise: a federation that a client joined late, what it was before, and the record of it."""

    @functools.cache
    def story(noise_at):
        deployed = joined_late(tmp_path_factory.mktemp(noise_at), noise_at)
        prompts, agreed = deployed.prompts(), records.read_json(deployed.folder("server") / "agreement.json")
        (record,) = deployed.serve()
        return SimpleNamespace(deployed=deployed, before=prompts, agreed=agreed, record=record)

    return story


@pytest.mark.parametrize("noise_at", ["client", "server"])
def test_a_client_that_joins_late_makes_the_last_part_alone_and_the_rest_is_computed_again(late, noise_at):
    story = late(noise_at)
    deployed, before, record = story.deployed, story.before, story.record
    assert (record.is_late, record.took_part, record.asked) == (True, ["cyd"], ["cyd"])
    after = deployed.prompts()
    for name in ("global.safetensors", "client-000.safetensors", "client-001.safetensors"):
        assert not torch.equal(before[name]["text_features"], after[name]["text_features"]), name
        assert torch.equal(after[name]["text_features"], after["client-002.safetensors"]["text_features"])
    agreement = read_agreement(records.read_json(deployed.folder("server") / "agreement.json"))
    assert (agreement.clients, agreement.num_late, agreement.first) == (NAMES, 1, read_agreement(story.agreed))
    privacy = records.read_json(deployed.folder("server") / "privacy.json")["arms"][0]
    whole, part = privacy["clients"]
    assert (whole["clients"], part["clients"]) == ([0, 1], [2])
    z = privacy["noise_multipliers"]["global"]
    own = records.read_json(deployed.folder("cyd") / "privacy.json")["arms"][0]
    held = own["audiences"]["public"]
    assert "1 client joined after that" in privacy["one_release"]
    assert "This client joined after that" in own["one_release"]
    assert held["releases"]["noise_multiplier"] == pytest.approx(z / 0.95**0.5)
    assert held["epsilon"] == part["epsilon"]["public"] == deployed.lines("cyd", "ledger.jsonl")[0]["spent"]["epsilon"]
    assert part["epsilon"]["public"] < whole["epsilon"]["public"]
    assert "takes nothing back" in privacy["one_release"]
    assert f"noise multiplier {z / 0.95**0.5:.4g} where the others have {z:.4g}" in privacy["one_release"]
    (run,) = status.client_status(deployed.client("cyd")).runs
    assert run.epsilon == run.guarantees[0]["audiences"]["public"]["epsilon"] == held["epsilon"]
    assert status.round_line(record, 1, "seeded").startswith("after the release: cyd took part")
    for name in ("server", *NAMES):
        assert not verify(deployed.folder(name)).differences
    files = {path: path.read_bytes() for path in deployed.root.rglob("ledger.jsonl")}
    assert deployed.serve() == [], "it is done once"
    assert files == {path: path.read_bytes() for path in deployed.root.rglob("ledger.jsonl")}
    assert deployed.reasons() == []


def test_late_sums_go_beside_the_published_mean_and_move_no_other_class(tmp_path):
    """Whatever the first clients do: they may be gone."""
    deployed = joined_late(tmp_path, "server")
    for name in ("ann", "bob"):
        deployed.carrier.nodes.pop(name)
    released = load_state(deployed)
    (record,) = deployed.serve(join_deadline_s=0.01)
    added = load_state(deployed)
    assert torch.equal(added["shared.sums"][0], released["shared.sums"][0]), "the mean stays"
    own = [label for label, name in enumerate(deployed.config.class_names()) if name in declared(VALUES)["cyd"]]
    moved = (added["shared.sums"] != released["shared.sums"]).any(dim=1).nonzero().flatten() - 1
    assert moved.tolist() == own, "no other class gets more noise"
    assert record.took_part == ["cyd"]


@pytest.mark.parametrize("when", ["before the answer", "after the answer"])
def test_a_late_client_that_is_asked_again_after_a_kill_is_charged_once(tmp_path, monkeypatch, late, when):
    deployed = joined_late(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*((late_clients, "asked") if when.startswith("before") else (Coordinator, "record")), killed)
        with pytest.raises(Killed):
            deployed.serve()
    deployed.restart("cyd")
    deployed.serve()
    for name in ("server", "cyd"):
        assert [line["round"] for line in deployed.lines(name, "ledger.jsonl")] == [1] * (1 + (name == "server"))
    for name, tensors in late("client").deployed.prompts().items():
        assert all(torch.equal(tensors[key], deployed.prompts()[name][key]) for key in tensors), name


def test_the_first_message_is_refused_by_a_late_client(tmp_path, monkeypatch):
    """It is charged for the last part alone, so it makes no other, whatever its server asks."""
    deployed = joined_late(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(late_clients, "asked", killed)
        with pytest.raises(Killed):
            deployed.serve()
    own = read_agreement(records.read_json(deployed.folder("cyd") / "agreement.json"))
    names = {"federation": "trial", "run": deployed.run_id, "agreement": own.digest, "round": 0, "step": 0}
    state = {name.removeprefix("shared."): value for name, value in load_state(deployed).items()}
    asked = {**state, "stage": torch.tensor(0)}
    assert deployed.carrier.nodes["cyd"].answer(Envelope("turn", names, asked)).is_refusal
    assert "has no update at round 1, step 1" in deployed.reasons("cyd")[0]


def test_a_late_client_releases_its_part_once_and_no_other(late):
    """Whatever its server asks: a second plan, another message, or that a client of the start comes late."""
    deployed = late("client").deployed
    (ledger,) = deployed.lines("cyd", "ledger.jsonl")
    own = read_agreement(records.read_json(deployed.folder("cyd") / "agreement.json"))
    first = read_agreement(records.read_json(deployed.folder("ann") / "agreement.json"))
    later = first.with_late("eve", 9, None).with_late("cyd", own.sizes[-1], own.client_classes[-1])
    swapped = dataclasses.replace(first, clients=("bob", "ann"), sizes=first.sizes[::-1], client_classes=(), num_late=1)
    for name, agreement, is_allowed in (("cyd", own, True), ("cyd", later, False), ("ann", swapped, False)):
        answer = deployed.carrier.nodes[name].answer(Envelope("plan", {**version(), "agreement": agreement.to_json()}))
        assert answer.is_refusal != is_allowed
        assert is_allowed or "Training began under another plan" in answer.meta["reason"]
    names = {"federation": "trial", "run": deployed.run_id, "agreement": own.digest, "round": 0, "step": 1}
    shared = {"sums": torch.zeros(7, 3), "stage": torch.tensor(1)}
    refused = deployed.carrier.nodes["cyd"].answer(Envelope("turn", names, shared))
    assert "past round 1, step 2 already" in refused.meta["reason"]
    assert [ledger] == deployed.lines("cyd", "ledger.jsonl")


def test_a_client_whose_secure_release_was_charged_and_lost_makes_no_other(tmp_path, monkeypatch):
    privacy = {**VALUES["privacy"], "noise_source": "secure"}
    deployed = Deployment({**VALUES, "privacy": privacy}, tmp_path, client_classes=declared(VALUES), min_clients=2)
    update = Client.update

    def killed_at_bob(self, *given):
        return killed() if self.client_id == 1 else update(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "update", killed_at_bob)
        with pytest.raises(Killed):
            deployed.serve()
    (record,) = deployed.serve()
    assert record.took_part == ["ann", "cyd"]
    assert "charged before, but what it released was lost" in record.failures["bob"]
    assert len(deployed.lines("bob", "ledger.jsonl")) == 1


def test_a_late_client_without_a_plan_is_left_out_and_told(tmp_path):
    deployed = joined_late(tmp_path)
    deployed.serve(client_classes={name: own for name, own in declared(VALUES).items() if name != "cyd"})
    assert "there is no plan" in deployed.reasons()[0], "a class prior needs its classes"
    assert not deployed.lines("cyd", "ledger.jsonl")


GAINS = {**VALUES, "evaluation": {"metrics_epsilon": 4.0, "metrics_delta": 1e-3}}


def test_what_each_client_gained_is_told_from_counts_with_noise_once(tmp_path):
    deployed = Deployment(
        GAINS, tmp_path, client_classes=declared(VALUES), min_clients=2, owner={"max_metrics_epsilon": 5.0}
    )
    late = deployed.carrier.nodes.pop("cyd")
    deployed.serve()
    first = records.read_json(deployed.folder("server") / "summary.json")["arms"][-1]["per_client"]
    deployed.carrier.nodes["cyd"] = late
    del deployed.carrier.nodes["ann"]
    deployed.serve()
    before, arm = records.read_json(deployed.folder("server") / "summary.json")["arms"]
    assert [one["client"] for one in arm["per_client"]] == list(NAMES)
    assert arm["per_client"][:2] == first, "a client tells once, whoever joins later, and may be gone then"
    plan = gains.plan_of(deployed.config.run)
    assert plan.guarantee().epsilon == pytest.approx(4.0, rel=1e-4)
    assert plan.guarantee().releases.num_steps == 2
    for name, one in zip(NAMES, arm["per_client"], strict=True):
        (line,) = deployed.lines(name, "metrics.jsonl")
        own = deployed.lines(name, "records.jsonl")[0]
        for told, key, exact in zip(line["local"], ("zero_shot", "local"), ("zero_shot", "accuracy"), strict=True):
            assert one[key] == min(max(told / own["num_images"], 0), 1)
            assert 0 < abs(told - own["num_images"] * own[exact]) < 6 * plan.std_local
    assert arm["local"] == pytest.approx(sum(one["local"] for one in arm["per_client"]) / 3)
    assert [one["local"] for one in before["per_client"]] == [one["zero_shot"] for one in arm["per_client"]]
    (said,) = status.server_status(deployed.config, "").gains
    assert f"ann: zero-shot {100 * first[0]['zero_shot']:.1f} %, now {100 * first[0]['local']:.1f} %" in said
    (own,) = status.client_status(deployed.client("ann")).runs
    assert own.zero_shot == deployed.lines("ann", "records.jsonl")[-1]["zero_shot"]
    for name in ("server", *NAMES):
        statement = records.read_json(deployed.folder(name) / "privacy.json")["evaluation_images"]
        assert statement.startswith("epsilon = 4 (simulation) at delta = 0.001 for one evaluation image")
        assert not verify(deployed.folder(name)).differences
    drawn = page.report([deployed.folder("server")], "")
    assert "What each client gained" in drawn
    assert f"<span>{100 * first[0]['local']:.1f}</span>" in drawn


def test_a_federation_has_zero_shot_beside_its_own_row_where_clients_told_counts(tmp_path):
    deployed = Deployment(GAINS, tmp_path, client_classes=declared(VALUES), owner={"max_metrics_epsilon": 4.0})
    deployed.serve()
    run = hp.load(deployed.folder("server"))
    told = run.arms[-1].per_client
    before, own = run.table().rows
    assert (before["title"], before["epsilon"], own["title"]) == ("zero-shot template", None, run.arms[-1].title)
    assert before["local"] == pytest.approx(sum(one["zero_shot"] for one in told) / 3)
    assert before["worst_client"] == min(one["zero_shot"] for one in told)
    assert all(math.isnan(before[score]) for score in ("neighbor", "harmonic_mean", "calibration_error"))
    assert "evaluation images: epsilon = 4 (simulation)" in repr(run.table())
    local, worst = (f"{100 * before[score]:.1f}" for score in ("local", "worst_client"))
    assert re.search(rf"zero-shot template +{local} +- +- +{worst} +- +-", repr(run.table()))
    assert re.search(rf"zero-shot template +- +{local} ", str(hp.compare(run, against="zero_shot")))
    assert "zero-shot template" in page.report([run.folder], "").partition('id="results"')[2].partition("</section>")[0]
    for kind in ("budget", "clients"):
        assert "zero-shot template" in run.figure(kind).svg
    assert not verify(run.folder).differences
    summary = run.folder / "summary.json"
    summary.write_text(summary.read_text().replace('"epsilon": null', '"epsilon": 0.1', 1))
    assert any("zero_shot, epsilon is 0.1" in text for text in verify(run.folder).differences)


def test_a_client_has_its_own_prompt_in_its_store_and_the_server_the_shared_one(tmp_path):
    deployed = deployment(tmp_path)
    deployed.serve()
    config, server = deployed.config.run, deployed.folder("server")
    test = config.data.load().splits["test"]
    for client, name in zip(make_partition(config, config.data.load()).clients, NAMES, strict=True):
        prompt = hp.load_prompt(deployed.root / name, client=name)
        assert prompt.path == hp.load_prompt(deployed.root / name).path
        assert prompt.header.client_name == name
        own = client.indices["test"]
        right = [prompt.predict(array).label for array in test.read(own)] == np.take(prompt.classes, test.labels[own])
        assert right.mean() == pytest.approx(deployed.lines(name, "records.jsonl")[-1]["accuracy"])
        for source in (server, server / "prompts"):
            with pytest.raises(DataError, match="In a federation each client's own prompt is in its own store alone"):
                hp.load_prompt(source, client=name)
    assert hp.load_prompt(server).header.client_id is None
    card = (hp.export(server, to="card", out=tmp_path / "card") / "README.md").read_text()
    assert "3 clients with data and a machine of their own: a federation." in card
    assert "1 round; every example, once, no sampling." in card


@pytest.mark.parametrize("values", [GAINS, VALUES])
def test_each_figure_of_a_federation_is_drawn_or_says_what_is_missing(tmp_path, values):
    deployed = Deployment(values, tmp_path, client_classes=declared(VALUES), owner={"max_metrics_epsilon": 4.0})
    deployed.serve()
    drawn = {"budget", "clients"} if values is GAINS else set()
    for kind in figures.KINDS.keys() - drawn:
        with pytest.raises(DataError) as caught:
            hp.figure(deployed.folder("server"), kind=kind)
        assert figures.MISSING[kind] in str(caught.value)
        assert str(caught.value).endswith(f"There is for: {', '.join(sorted(drawn)) or 'none'}.")
    for kind in drawn:
        hp.figure(deployed.folder("server"), kind=kind)
    assert (len(hp.load(deployed.folder("server")).arms) == 2) == (values is GAINS), "no row without a number"


def test_counts_leave_only_as_far_as_the_owner_allows_over_all_runs(tmp_path):
    deployed = Deployment(GAINS, tmp_path, client_classes=declared(VALUES), owner={"max_metrics_epsilon": 4.0})
    deployed.serve()
    told = {path: path.read_bytes() for path in deployed.root.rglob("metrics.jsonl")}
    assert len(told) == 3
    with pytest.raises(ProtocolError, match="0 clients accept the plan"):
        deployed.serve(folder=str(tmp_path / "again"))
    assert (
        "over all runs here to 8, above max_metrics_epsilon = 4" in deployed.lines("bob", "refusals.jsonl")[0]["reason"]
    )
    assert told == {path: path.read_bytes() for path in deployed.root.rglob("metrics.jsonl")}


WRONG = [[[1, 0], None, None], [[0, 0], None, None], [[9], None, None], [[]] * 3, [None] * 3, [[0], None], [[-1]] * 3]


@pytest.mark.parametrize("sets", WRONG)
def test_an_agreement_declares_classes_in_one_way_only(sets):
    values = {
        "federation": "f", "run": "r", "config": "", "class_names": ["a", "b", "c"], "backbone": "x",
        "clients": ["k", "l", "m"], "sizes": [1, 2, 3],
    }  # fmt: skip
    assert read_agreement({**values, "client_classes": [[0, 2], None, [1]]}).client_classes == ((0, 2), None, (1,))
    assert read_agreement(values).client_classes == ()
    with pytest.raises(ProtocolError, match="must be a sorted list of labels"):
        read_agreement({**values, "client_classes": sets})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"ann": ("ant", "auk")}, "client_classes.ann must name classes of the federation, at least one, got auk"),
        ({"ann": ()}, "client_classes.ann must name classes of the federation, at least one, got none"),
        ({"eve": ("ant",)}, "client_classes names eve, not in federation.clients"),
    ],
)
def test_impossible_declarations_are_refused_when_the_server_starts(tmp_path, classes, message):
    with pytest.raises(ConfigError, match=message):
        deployment(tmp_path, client_classes=classes).serve()


def test_a_class_prior_needs_classes_of_every_client(tmp_path):
    classes = declared(VALUES)
    with pytest.raises(ConfigError, match="nobody declared them, so they are private"):
        deployment(tmp_path, client_classes={"ann": classes["ann"]}).serve()
