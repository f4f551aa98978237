"""The commands by name: where each one is, and what `--help` says of it before it is imported."""

from __future__ import annotations

from typing import NamedTuple


class CommandEntry(NamedTuple):
    """A command that is imported once it is called."""

    target: str
    """Module in `hushprompt.cli` and function, as "run:run"."""
    panel: str
    """Heading under which the help lists it."""
    summary: str
    """First line of the function's docstring."""
    examples: tuple[str, ...]
    """One to three command lines that work as they stand, on files of these names."""


class Section(NamedTuple):
    """A group of commands under one name, such as `hushprompt data`."""

    panel: str
    summary: str
    examples: tuple[str, ...]


HELP = "Private, personal, federated prompt learning of frozen vision-language models."
EXAMPLES = (
    "hushprompt run",
    "hushprompt run --set privacy.epsilon=2 --out runs/strict",
    "hushprompt report runs/strict",
)
TRAIN, USE, PRIVACY, COMPARE, DATA, FEDERATION = "Train", "Use", "Privacy", "Compare", "Data", "Federation"
SECTIONS = {
    "data": Section(
        DATA,
        "Look at a data set, or get one.",
        ("hushprompt data info embedded", "hushprompt data fetch caltech101 --root data"),
    ),
    "features": Section(
        DATA,
        "Images as vectors in a file.",
        (
            "hushprompt features export embedded -o features.npz",
            "hushprompt features metric --features public.npz",
        ),
    ),
    "federation": Section(
        FEDERATION,
        "Train on separate machines, over TLS, with a key for each client.",
        ("hushprompt federation init clinics --clients north,south", "hushprompt federation simulate clinics"),
    ),
}
COMMANDS = {
    "run": CommandEntry(
        "run:run",
        TRAIN,
        "Train, evaluate and account; write a run folder and print the table.",
        (
            "hushprompt run",
            "hushprompt run embedded --set privacy.epsilon=2 --out runs/strict",
            "hushprompt run --resume runs/strict",
        ),
    ),
    "sweep": CommandEntry(
        "sweep:sweep",
        TRAIN,
        "Make every run of a grid that is not done yet; the same command goes on after a kill.",
        (
            "hushprompt sweep grid.toml --dry-run",
            "hushprompt sweep grid.toml --jobs 4 -o runs/grid",
            "hushprompt sweep grid.toml --ray auto",
        ),
    ),
    "list": CommandEntry(
        "list_names:list_names",
        TRAIN,
        "List what can be named in a config.",
        ("hushprompt list methods", "hushprompt list dp_fpl"),
    ),
    "predict": CommandEntry(
        "predict:predict",
        USE,
        "Say what images or sounds are: the most probable classes of each file, or an answer in words.",
        (
            "hushprompt predict runs/strict photo.jpg --client 0",
            "hushprompt predict runs/strict images/ --compare zero_shot -o out.txt",
            "hushprompt predict runs/strict --split test --client 0",
        ),
    ),
    "export": CommandEntry(
        "export:export",
        USE,
        "Write a trained prompt for other programs: a linear head, ONNX, a script, peft's form, or a model card.",
        (
            "hushprompt export runs/strict --to card -o card",
            "hushprompt export runs/strict --client 0 --to onnx -o onnx",
        ),
    ),
    "serve": CommandEntry(
        "serve:serve",
        USE,
        "Answer over HTTP what images or sounds are, with a page for people; Ctrl-C or SIGTERM ends it.",
        (
            "hushprompt serve runs/strict --client 3",
            "hushprompt serve runs/strict --client 3 --max-epsilon 4 --port 9000",
        ),
    ),
    "privacy": CommandEntry(
        "show:privacy",
        PRIVACY,
        "Print who sees what of a run, at which epsilon.",
        ("hushprompt privacy runs/strict",),
    ),
    "verify": CommandEntry(
        "show:verify",
        PRIVACY,
        "Compute a run's noise and epsilon again, and compare everything that it published.",
        ("hushprompt verify runs/strict", "hushprompt verify runs/strict --digest 5f2c..."),
    ),
    "calibrate": CommandEntry(
        "calibrate:calibrate",
        PRIVACY,
        "Return the noise multipliers that a budget needs, and who then has which epsilon.",
        (
            "hushprompt calibrate --epsilon 8 --rounds 20",
            "hushprompt calibrate --epsilon 2 --rounds 100 --sampling-prob 0.1",
        ),
    ),
    "audit": CommandEntry(
        "audit:audit",
        PRIVACY,
        "Attack what a run publishes, measure a lower bound on epsilon, and set it beside the claim.",
        ("hushprompt audit runs/strict", "hushprompt audit embedded --epsilon 2,inf --attack none --out audit/quick"),
    ),
    "show": CommandEntry(
        "show:show",
        COMPARE,
        "Print the result table of a finished run again.",
        ("hushprompt show runs/strict",),
    ),
    "compare": CommandEntry(
        "compare:compare_runs",
        COMPARE,
        "Compare methods and settings over seeds: mean, spread, epsilon, significance.",
        (
            "hushprompt compare runs/grid",
            "hushprompt compare runs/grid --against promptfl --columns epsilon",
            "hushprompt compare runs/grid --table scores -o table.tex",
        ),
    ),
    "report": CommandEntry(
        "report:report",
        COMPARE,
        "Make one self-contained HTML page of finished runs, from their records alone.",
        ("hushprompt report runs/strict", "hushprompt report runs/grid -o grid.html"),
    ),
    "figure": CommandEntry(
        "figure:figure",
        COMPARE,
        "Draw a figure of finished runs as a file for a paper, from their records alone.",
        ("hushprompt figure runs/strict -o curves.pdf", "hushprompt figure runs/grid --kind budget -o budget.svg"),
    ),
    "partition": CommandEntry(
        "data:partition",
        DATA,
        "Print the clients x classes table of a config, and write it and a plot.",
        ("hushprompt partition", "hushprompt partition embedded --set partition.num_clients=5 --out five"),
    ),
    "data info": CommandEntry(
        "data:info",
        DATA,
        "Print classes, splits, license, citation and checksums of a data set, what is cached, and what may be wrong.",
        ("hushprompt data info embedded", "hushprompt data info folder --root my_images --verify"),
    ),
    "data fetch": CommandEntry(
        "data:fetch",
        DATA,
        "Download a data set, or say what to get from where.",
        ("hushprompt data fetch caltech101 --root data",),
    ),
    "features export": CommandEntry(
        "features:export",
        DATA,
        "Encode a config's images, and write features, labels, clients and text features as one .npz file.",
        ("hushprompt features export embedded -o features.npz",),
    ),
    "features metric": CommandEntry(
        "features:metric",
        DATA,
        "Make a backbone's public metric, which class statistics need, from labeled public images.",
        (
            "hushprompt features metric --images public/ --set backbone.name=open_clip",
            "hushprompt features metric --features public.npz -o metric.safetensors",
        ),
    ),
    "federation init": CommandEntry(
        "federation:init",
        FEDERATION,
        "Write configs, certificates, keys, systemd units and a compose file; nothing is overwritten.",
        (
            "hushprompt federation init trial --clients a,b",
            "hushprompt federation init clinics --clients a,b --classes classes.txt",
        ),
    ),
    "federation key": CommandEntry(
        "federation:key",
        FEDERATION,
        "Make a client's key pair: the private half stays, the public half goes to the server's operator.",
        ("hushprompt federation key node.key",),
    ),
    "federation fingerprint": CommandEntry(
        "federation:fingerprint",
        FEDERATION,
        "Print one fingerprint of all clients' public keys, which owners compare by another way than the server's.",
        ("hushprompt federation fingerprint client.toml", "hushprompt federation fingerprint peers"),
    ),
    "federation renew": CommandEntry(
        "federation:renew",
        FEDERATION,
        "Make a new server certificate for the same names; clients keep what they have.",
        ("hushprompt federation renew clinics",),
    ),
    "federation server": CommandEntry(
        "federation:server",
        FEDERATION,
        "Run the server: clients connect to it, and `run` trains on them. Ctrl-C or SIGTERM ends it.",
        ("hushprompt federation server server/server.toml",),
    ),
    "federation client": CommandEntry(
        "federation:client",
        FEDERATION,
        "Run a client: it answers the server as its owner allows. Ctrl-C or SIGTERM ends it.",
        ("hushprompt federation client client.toml",),
    ),
    "federation run": CommandEntry(
        "federation:run",
        FEDERATION,
        "Train, from the server's machine, and show it; the exit status is 0 if the run was completed.",
        ("hushprompt federation run server/server.toml", "hushprompt federation run server/server.toml --leave-step"),
    ),
    "federation check": CommandEntry(
        "federation:check",
        FEDERATION,
        "Ask the clients whether they accept the plan, from the server's machine; nothing is trained or charged.",
        ("hushprompt federation check server/server.toml",),
    ),
    "federation simulate": CommandEntry(
        "federation:simulate",
        FEDERATION,
        "Train a federation that `init` wrote in Flower's simulation (Ray): all on this machine, no server, no keys.",
        ("hushprompt federation simulate trial",),
    ),
    "federation stop": CommandEntry(
        "federation:stop",
        FEDERATION,
        "Stop the run that is going on, from the server's machine; `run` goes on with it.",
        ("hushprompt federation stop server/server.toml",),
    ),
    "federation status": CommandEntry(
        "federation:status",
        FEDERATION,
        "Print what happened at this end: rounds, who took part, what was refused, what was spent.",
        ("hushprompt federation status server/server.toml", "hushprompt federation status client.toml"),
    ),
}
