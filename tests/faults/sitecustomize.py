"""What goes wrong in the processes of a real federation: every Python with this folder on its path loads it.

`$FAULTS` is a folder; a client's file there, NAME.json, says what its answers to which messages are like. A slow one
comes at once when the file does not say so any more.
A SuperNode looks for messages twice a second, and one that does not come whole is given up after ten seconds.
"""

import errno
import functools
import json
import os
import sys
import time
from pathlib import Path

COMMAND = " ".join(sys.orig_argv)


def fault_of(name, request):
    path = Path(os.environ["FAULTS"]) / f"{name}.json"
    for fault in json.loads(path.read_text()) if path.exists() else []:
        if (request.kind, request.meta.get("round")) == (fault["kind"], fault["round"]):
            return fault
    return {}


def full_disk(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@functools.cache
def spoil():
    """Make the answers of this process, or of one that is forked from it, what the client's file says."""
    from flwr.app import Array

    from hushprompt.deployment.client_node import ClientNode
    from hushprompt.deployment.flower import messages

    answer = ClientNode.answer

    def damaged(dtype, shape, form, data):
        return Array(dtype, shape, form, data[:-1] + bytes([data[-1] ^ 1]))

    def spoiled(self, request):
        name = self.config.client.name
        fault = fault_of(name, request)
        match fault.get("what"):
            case "slow":
                (Path(os.environ["FAULTS"]) / f"{name}.begun").touch()
                end = time.monotonic() + fault["seconds"]
                while time.monotonic() < end and fault_of(name, request) == fault:
                    time.sleep(0.1)
            case "full disk":
                os.fsync = full_disk
            case "damaged":
                messages.Array = damaged
        return answer(self, request)

    ClientNode.answer = spoiled


if "FAULTS" in os.environ and "flower.supernode" in COMMAND:
    from hushprompt.deployment.flower import pace

    pace.SOON_S = 0.5
if "FAULTS" in os.environ and "flower.standby" in COMMAND:
    from hushprompt.deployment.flower import clientapp

    clientapp.PULL_S = 10.0  # of a message whose server was killed as it sent it
    prepare = clientapp.prepare

    def prepare_and_spoil():
        spoil()
        prepare()

    clientapp.prepare = prepare_and_spoil  # a process on standby takes messages before all is imported
if "FAULTS" in os.environ and "flower.clientapp" in COMMAND:
    spoil()
