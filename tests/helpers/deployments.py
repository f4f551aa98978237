"""What tests of a federation of separate machines share: a server and clients in one process, and faulty carriers."""

import dataclasses
import itertools
import json

from safetensors.torch import load_file

from helpers.in_process import InProcess
from helpers.runs import Silent, run_with
from hushprompt import files, load_prompt
from hushprompt.config import parse as configs
from hushprompt.config.schema import RuntimeConfig
from hushprompt.deployment.client_node import open_client_node
from hushprompt.deployment.config import (
    ClientConfig,
    ClientLinkConfig,
    ClientSection,
    FederationConfig,
    OwnerConfig,
    ServerConfig,
    ShareConfig,
)
from hushprompt.deployment.coordinator import serve
from hushprompt.deployment.operate import node_keys, secrets
from hushprompt.federation.setup import declared_classes

NAMES = ("ann", "bob", "cyd")


def declared(values):
    """What a partition's rule declares, as `federation.client_classes` says it."""
    config = configs.parse(values)
    names = config.data.load().class_names
    sets = declared_classes(config, names) or ()
    return {name: tuple(names[label] for label in own) for name, own in zip(NAMES, sets, strict=False)}


class Killed(BaseException):
    """The end of a process, which nobody catches."""


def break_nth_write(patch, folder, number, error, broken):
    """Make the n-th write below a folder fail, before it has any effect; `broken` gets its path."""
    count, folder = itertools.count(1), str(folder)

    def around(true):
        def write(path, *args):
            if str(path).startswith(folder) and "cache" not in str(path) and next(count) == number:
                broken.append(str(path))
                raise error
            return true(path, *args)

        return write

    for name in ("append_line", "write_text", "write_tensors"):
        patch.setattr(files, name, around(getattr(files, name)))
    patch.setattr(secrets, "write_new", around(secrets.write_new))


def pinned(folder, names=NAMES):
    """By client, its link with a key of its own and the public keys of all; they are made once in a folder."""
    for name in names:
        key, public = folder / "keys" / name, folder / "peers" / f"{name}.pub"
        if not key.exists():
            made = node_keys.make(key, name)
            public.parent.mkdir(exist_ok=True)
            public.write_bytes(made.read_bytes())
    return {name: ClientLinkConfig(key=str(folder / "keys" / name), peers=str(folder / "peers")) for name in names}


class Deployment:
    """A server and clients that share the toy data, all in one folder."""

    def __init__(self, values, tmp_path, carrier=InProcess, owner=None, names=NAMES, **federation):
        self.root, self.names = tmp_path / "deployment", names
        run = configs.parse({**values, "references": []})
        self.link = pinned(self.root, names) if run.privacy.noise_at == "shares" else dict.fromkeys(names)
        self.owner = OwnerConfig(**{"max_epsilon": 10.0, "max_delta": 1.0, **(owner or {})})
        section = {"join_deadline_s": 0.01, "round_deadline_s": 5.0, **federation}
        section = {"name": "trial", "run": "run.toml", "clients": names, "folder": str(self.root / "server"), **section}
        self.config = ServerConfig(federation=FederationConfig(**section), run=run)
        self.carrier = carrier({name: self.site(name) for name in names})
        self.cache = tmp_path / "cache"

    def client(self, name, **changes):
        store = self.root / name
        runtime = RuntimeConfig(cache_dir=str(self.root.parent / "cache"))
        share = ShareConfig(client=self.names.index(name))
        base = {"client": ClientSection(name=name, store=str(store)), "owner": self.owner, "share": share}
        if self.link[name] is not None:
            base["link"] = self.link[name]
        return ClientConfig(**{**base, "runtime": runtime, **changes})

    def site(self, name, **changes):
        return open_client_node(self.client(name, **changes))

    def restart(self, name, **changes):
        """A client's process ends, and another one begins on its store."""
        self.carrier.nodes[name] = self.site(name, **changes)

    def serve(self, *, leave_step=False, **federation):
        """Serve, as a new server process would."""
        section = dataclasses.replace(self.config.federation, **federation)
        watcher = Silent()
        config = dataclasses.replace(self.config, federation=section)
        serve(config, self.carrier, watcher, leave_step=leave_step)
        return watcher.rounds

    @property
    def run_id(self):
        return json.loads((self.root / "server" / "agreement.json").read_text())["run"]

    def folder(self, name):
        return self.root / name if name == "server" else self.root / name / "trial" / self.run_id

    def prompts(self):
        """All prompts that the federation left, under the names that a simulation gives them."""
        found = {}
        for name in ("server", *self.names):
            for path in sorted((self.folder(name) / "prompts").glob("*")):
                if name == "server" or path.name != "global.safetensors":
                    found[path.name] = load_file(path)
        return found

    def lines(self, name, file):
        path = self.folder(name) / file if name == "server" or file != "refusals.jsonl" else self.root / name / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def reasons(self, name="server"):
        return [line["reason"] for line in self.lines(name, "refusals.jsonl")]


def assert_gives_the_contexts_of_a_simulation(deployed, values, folder):
    """Serve, and compare the prompts of three clients and the server with those of a run with the same values."""
    deployed.serve()
    assert deployed.reasons() == []
    simulated, _, _ = run_with(values, folder)
    left, right = deployed.prompts(), sorted((simulated / "prompts").glob("*"))
    assert sorted(left) == [path.name for path in right]
    assert len(right) == 4
    for path in right:
        assert (left[path.name]["context"] - load_prompt(path).tensors["context"]).abs().max() < 1e-5
