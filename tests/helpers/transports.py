"""A federation over each of the transports, whose bob may answer anything."""

from helpers.deployments import NAMES, Deployment
from helpers.in_process import InProcess
from helpers.local_grid import LocalGrid
from hushprompt.deployment.flower import client_app as client_side
from hushprompt.deployment.flower import messages
from hushprompt.deployment.flower.grid_transport import GridTransport


class Replacing(InProcess):
    """Brings what `change` makes of the bytes that bob answered; None leaves them."""

    change = staticmethod(lambda data: None)

    def deliver(self, node, data):
        answer = super().deliver(node, data)
        return (self.change(answer) if node == "bob" else None) or answer


class OverFlower(GridTransport):
    """The same over Flower's messages, with the client's real app."""

    def __init__(self, nodes):
        self.nodes, now = dict(nodes), [0.0]
        client_side.client_node = lambda name: self.nodes[name]
        app = client_side.client_app(lambda context: NAMES[context.node_config["partition-id"]])
        self.grid = LocalGrid(app, len(NAMES))
        self.grid.faults[1001] = self._replaced
        names = {str(1000 + at): name for at, name in enumerate(NAMES)}
        super().__init__(self.grid, names, lambda: now[0], lambda seconds: now.__setitem__(0, now[0] + seconds))

    change = staticmethod(lambda data: None)

    def _replaced(self, reply):
        data = self.change(messages.content_of(reply))
        if isinstance(data, bytes):
            array = messages.Array("uint8", (len(data),), messages.FORM, data)
            reply.content[messages.ENTRY] = messages.ArrayRecord({messages.ENTRY: array})
        return data if isinstance(data, Exception) else reply


CARRIERS = {"in process": Replacing, "flower": OverFlower}


def over_each_transport(values, tmp_path, transport, **federation):
    """A federation whose bob may be changed, over a transport by name."""
    return Deployment(values, tmp_path, CARRIERS[transport], min_clients=2, **federation)
