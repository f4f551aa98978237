"""Clients with noise shares, real ones with disks, and a server by hand that may send anything to anybody."""

import dataclasses
import itertools

import numpy as np
import torch

from helpers.deployments import pinned
from hushprompt.config import parse as configs
from hushprompt.config.schema import RuntimeConfig
from hushprompt.deployment import rescue
from hushprompt.deployment.agreement import Agreement, make_offer, version
from hushprompt.deployment.client_node import open_client_node
from hushprompt.deployment.config import ClientConfig, ClientSection, OwnerConfig, ShareConfig
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.secure_turn import SecureTurn
from hushprompt.errors import ProtocolError
from hushprompt.federation.payload import add_shares

SECURE = {"epsilon": 8.0, "delta": 1e-3, "noise_at": "shares", "audience": "public", "noise_source": "secure"}
SECURE |= {"rounding": 0.0}  # not measured: it is about the model
FARTHEST = 2.0**55
"""No sum of a few clients' vectors is as large; of masked ones almost every entry is."""


def values_with_shares(toy_values, num_clients=5, **privacy):
    """A run of two rounds of two steps whose clients add shares of secure noise."""
    return {
        **toy_values,
        "references": [],
        "method": {"name": "promptfl", "num_ctx": 4},
        "partition": {"name": "disjoint_classes", "num_clients": num_clients},
        "training": {"num_rounds": 2},
        "sampling": {"name": "disjoint", "steps_per_round": 2},
        "privacy": {**SECURE, **privacy},
    }


class HandServer:
    """Asks clients one by one, and notes what they masked, for a look that no server has."""

    def __init__(self, values, tmp_path, monkeypatch, owner=None, **client):
        self.run, self.root = configs.parse(values), tmp_path
        self.names = tuple("abcdefgh"[: values["partition"]["num_clients"]])
        allowed = {"max_epsilon": 20, "max_delta": 1, "require_rounding": False, **(owner or {})}
        self.links, self.owner = pinned(tmp_path, self.names), OwnerConfig(**allowed)
        self.changes = client
        self.nodes = {name: open_client_node(self.client(name)) for name in self.names}
        class_names = self.run.data.load().class_names
        fingerprint = self.run.backbone.load().fingerprint
        self.offer = make_offer("trial", "run-1", self.run, class_names, fingerprint)
        self.vectors, hide = {}, SecureTurn.hide

        def watched(turn, vector, request, participants):
            self.vectors.setdefault((turn.name, request.digest), []).append(vector.copy())
            return hide(turn, vector, request, participants)

        monkeypatch.setattr(SecureTurn, "hide", watched)

    def client(self, name):
        section = ClientSection(name=name, store=str(self.root / name))
        runtime = RuntimeConfig(cache_dir=str(self.root / "cache"))
        base = {"client": section, "owner": self.owner, "link": self.links[name], "runtime": runtime}
        return ClientConfig(**{**base, "share": ShareConfig(client=self.names.index(name)), **self.changes})

    def restart(self, name):
        """What a client knows after its process ended: its disk."""
        self.nodes[name] = open_client_node(self.client(name))

    def folder(self, name):
        return self.root / name / "trial" / self.offer.run

    def log(self, name):
        return (self.root / name / "refusals.jsonl").read_text()

    def ask(self, name, request):
        """Ask a client, as a transport does: bytes both ways."""
        request = Envelope.from_bytes(request.to_bytes(), 10**7)
        return Envelope.from_bytes(self.nodes[name].answer(request).to_bytes(), 10**7)

    # ---- enrollment

    def join(self, name):
        return self.ask(name, Envelope("join", {**version(), "offer": self.offer.to_json()}))

    def agreed(self, **changes):
        """The plan of all who join, with what they say."""
        said = [self.join(name).meta for name in self.names]
        listed = {"sizes": "num_examples", "keys": "key", "signatures": "signature"}
        members = {field: tuple(each[key] for each in said) for field, key in listed.items()}
        return Agreement(**self.offer.to_json(), clients=self.names, **{**members, **changes})

    def propose(self, name, agreement, kind="plan"):
        return self.ask(name, Envelope(kind, {**version(), "agreement": agreement.to_json()}))

    def enroll(self):
        """Have all agree."""
        self.agreement = self.agreed()
        for name in self.names:
            answer = self.propose(name, self.agreement)
            assert not answer.is_refusal, answer.meta
        return self

    # ---- a step

    @property
    def terms(self):
        return self.agreement.arm.plan.terms()

    def about(self, agreement=None):
        digest = (agreement or self.agreement).digest
        return {"federation": "trial", "run": self.offer.run, "agreement": digest}

    def request(self, round_index=0, step=0, participants=None, model=0.0, **meta):
        names = list(self.names if participants is None else participants)
        at = {"round": round_index, "step": step, "participants": names}
        return Envelope("turn", {**self.about(), **at, **meta}, {"context": torch.full((4, 8), model)})

    def turns(self, request, names=None):
        names = request.meta["participants"] if names is None else names
        answers = {name: self.ask(name, request) for name in names}
        assert not any(answer.is_refusal for answer in answers.values()), [one.meta for one in answers.values()]
        return answers

    def unmask_request(self, request, answers, name, answered=None, **meta):
        """What a server that keeps to the protocol asks one client after a turn."""
        everyone = request.meta["participants"]
        names = [one for one in everyone if one in answers] if answered is None else answered
        sealed = {everyone.index(one): answers[one].tensors["sealed"].numpy() for one in names if one in answers}
        boxes = torch.from_numpy(rescue.rows_for(sealed, everyone.index(name)))
        at = {"round": request.meta["round"], "step": request.meta["step"]}
        said = {"context": request.digest, "answered": names, **meta}
        return Envelope("unmask", {**self.about(), **at, **said}, {"sealed": boxes})

    def unmasks(self, request, answers, names=None):
        asked = {name: self.unmask_request(request, answers, name) for name in names or answers}
        given = {name: self.ask(name, one) for name, one in asked.items()}
        assert not any(answer.is_refusal for answer in given.values()), [one.meta for one in given.values()]
        return given

    def opened(self, request, answers, unmasks=None):
        """The sum that an honest server computes of what came."""
        everyone = request.meta["participants"]
        total = add_shares([answer.tensors["masked"].numpy() for answer in answers.values()])
        if unmasks is None:
            return total
        answered = sorted(everyone.index(name) for name in answers)
        missing = [place for place in range(len(everyone)) if place not in answered]
        shares = {everyone.index(name): answer.tensors["shares"].numpy() for name, answer in unmasks.items()}
        return rescue.open_sum(total, answered, missing, shares, self.terms.least)

    def clear(self, request, names):
        """The sum of what the clients masked."""
        return add_shares([self.vectors[name, request.digest][-1] for name in names])

    def is_closed(self, *groups):
        """True where no sum of some of these answers, one a client, is a number that a sum of clients can be."""
        for answers in groups:
            vectors = [answer.tensors["masked"].numpy() for answer in answers.values()]
            for size in range(1, len(vectors) + 1):
                for some in itertools.combinations(vectors, size):
                    if np.abs(add_shares(some).astype(float)).max() < FARTHEST:
                        return False
        return True

    def opens_nothing(self, request, answers, unmasks):
        """True where an honest server refuses to open, or gets numbers that no sum is."""
        try:
            total = self.opened(request, answers, unmasks)
        except ProtocolError:
            return True
        return np.abs(total.astype(float)).max() > FARTHEST


def refused(answer):
    """The reason of a refusal, which tells nothing else."""
    assert answer.is_refusal, answer.meta
    assert not answer.tensors
    return answer.meta["reason"]


def changed(agreement, place, **values):
    """A plan in which one client has another value in some fields."""
    fields = {
        key: (*getattr(agreement, key)[:place], value, *getattr(agreement, key)[place + 1 :])
        for key, value in values.items()
    }
    return dataclasses.replace(agreement, **fields)
