"""A federation of real processes on this machine, started as its operator and its clients' owners would."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import tomli_w

from helpers.commands import command
from hushprompt import files
from hushprompt.config import parse as configs
from hushprompt.deployment.config import load_server
from hushprompt.deployment.operate import server as ends
from hushprompt.deployment.operate.process_lifetime import descendants
from hushprompt.errors import LinkError

FAULTS = Path(__file__).parents[1] / "faults"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def edit(path, **sections):
    """Change settings of a TOML file; a section that is None goes."""
    values = configs.read(path)
    for name, changes in sections.items():
        if changes is None:
            values.pop(name, None)
        else:
            values[name] = {**values.get(name, {}), **changes}
    path.write_text(tomli_w.dumps(values))


class RealFederation:
    """A server and clients that share the run's data; what goes wrong is in tests/faults."""

    def __init__(self, root, run, names):
        self.root, self.names, self.processes = root, names, {}
        self.faults = root / "faults"
        self.faults.mkdir()
        paths = [str(FAULTS), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "FAULTS": str(self.faults),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.4",
        }
        (root / "run.toml").write_text(tomli_w.dumps(run))
        address = f"127.0.0.1:{free_port()}"
        init = ("init", root / "fed", "--clients", ",".join(names), "--address", address, "--run", root / "run.toml")
        self.call(*init, check=True)
        self.server = root / "fed" / "server" / "server.toml"
        edit(self.server.with_name("run.toml"), privacy={"noise_source": "seeded"})
        for name in names:
            owner = {"max_epsilon": 1000.0, "max_delta": 1.0, "require_noise_source": "any", "require_noise_at": "any"}
            edit(self.client(name), owner=owner)

    def client(self, name):
        return self.root / "fed" / "clients" / name / "client.toml"

    def store(self, name):
        return self.client(name).parent / "store"

    def log(self, name):
        """What the processes of one end have said."""
        return (self.root / f"{name}.log").read_text()

    def call(self, *words, check=False):
        """Run a command of `hushprompt federation` to its end."""
        done = subprocess.run(
            command("federation", *words), env=self.environment, check=False, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *names):
        """Start the processes of the server or of clients."""
        for name in names:
            words = ("server", self.server) if name == "server" else ("client", self.client(name))
            with (self.root / f"{name}.log").open("a") as log:
                self.processes[name] = subprocess.Popen(
                    command("federation", *words), env=self.environment, stdout=log, stderr=log
                )

    def kill(self, name):
        """End all processes of one end at once, as a power cut would."""
        process = self.processes.pop(name)
        for process_id in (process.pid, *descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        process.wait()

    def stop(self):
        """End everything, as an operator would."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()

    def begin(self, **federation):
        """Start to train with these settings of the server, without waiting for the end."""
        edit(self.server, federation=federation)
        self.until(lambda: all(run.is_over for run in self.runs()))
        return subprocess.Popen(
            command("federation", "run", self.server),
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def train(self, **federation):
        """Train to the end; give the exit status and what was shown."""
        process = self.begin(**federation)
        shown, _ = process.communicate()
        return process.returncode, shown

    def runs(self):
        with self.control() as control:
            return control.runs()

    def online(self):
        """Names of the clients that the server takes for connected."""
        names = json.loads(ends.names_file(load_server(self.server)).read_text())
        with self.control() as control:
            return {names[node.node_id] for node in control.nodes() if node.is_online}

    @contextlib.contextmanager
    def control(self):
        control = ends.control(load_server(self.server))
        with contextlib.closing(control._client):
            yield control

    def set_faults(self, **faults):
        """Have messages of clients go wrong: each (kind, round or None, what, seconds); an empty list ends it."""
        for name, of_client in faults.items():
            listed = [dict(zip(("kind", "round", "what", "seconds"), fault, strict=False)) for fault in of_client]
            (self.faults / f"{name}.begun").unlink(missing_ok=True)
            files.write_text(self.faults / f"{name}.json", json.dumps(listed))  # whole: a slow answer is reading it

    def has_begun(self, name):
        """Whether a slow answer of a client has begun."""
        return (self.faults / f"{name}.begun").exists()

    @staticmethod
    def until(condition, seconds=300.0):
        """Wait for something; a server that does not answer yet is waited for."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(LinkError):
                if condition():
                    return
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.4)  # a look at the server takes processor time at both ends
