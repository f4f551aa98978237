"""Flower's Grid inside one process: the apps as they are, no ports, no Ray; and nodes that fail as told."""

import copy
from types import SimpleNamespace
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

SUPERLINK = 1
"""Node id that SuperLink's own error replies come from."""


class LocalGrid(Grid):
    """Calls a ClientApp for each pushed message; `faults` by node id says what happens instead."""

    def __init__(self, client_app, num_nodes):
        # Flower's Message reads these of the process that it is made in, and there is none of its own here.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SUPERLINK
        self.client_app = client_app
        self.contexts = {
            1000 + at: Context(
                run_id=1, node_id=1000 + at, node_config={"partition-id": at}, state=RecordDict(), run_config={}
            )
            for at in range(num_nodes)
        }
        self.faults = {}
        self.ttls = []
        self._replies = {}

    def set_run(self, run):
        pass

    @property
    def run(self):
        return SimpleNamespace(run_id=1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError("deprecated in Flower")

    def get_node_ids(self):
        return [node for node in self.contexts if self.faults.get(node) != "offline"]

    def push_messages(self, messages):
        return [self._push(message) for message in messages]

    def _push(self, message):
        node, fault = message.metadata.dst_node_id, self.faults.get(message.metadata.dst_node_id)
        if fault == "not taken":
            return None
        message.metadata.__dict__["_message_id"] = str(uuid4())  # Flower has no public setter
        self.ttls.append(message.metadata.ttl)
        if fault == "gone":
            reply = Message(Error(5, "Node Unavailable"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = SUPERLINK
        elif fault in ("silent", "offline"):
            reply = None
        else:
            TaskIdentity.node_id = node
            reply = self.client_app(copy.deepcopy(message), self.contexts[node])
            TaskIdentity.node_id = SUPERLINK
        if reply is not None:
            self._replies[message.metadata.message_id] = fault(reply) if callable(fault) else reply
        return message.metadata.message_id

    def pull_messages(self, message_ids):
        found = [self._replies.pop(message_id) for message_id in list(message_ids) if message_id in self._replies]
        for reply in found:
            if isinstance(reply, Exception):  # what Flower raises where it cannot unpack what a node sent
                raise reply
        return found

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))
