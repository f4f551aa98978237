"""A transport of messages within one process."""

from concurrent.futures import ThreadPoolExecutor

from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.transport import answer_bytes, attempt


class InProcess:
    """Delivers messages, as bytes, to clients in this process."""

    def __init__(self, nodes, num_threads=1):
        self.nodes = dict(nodes)
        self._num_threads = num_threads

    def online(self):
        return list(self.nodes)

    def name_of(self, node):
        return ""

    def ask(self, requests, deadline_s, max_bytes):
        def ask_one(node):
            return attempt(lambda: Envelope.from_bytes(self.deliver(node, requests[node].to_bytes()), max_bytes))

        with ThreadPoolExecutor(self._num_threads) as pool:
            yield from zip(requests, pool.map(ask_one, requests), strict=True)

    def deliver(self, node, data):
        """Deliver bytes to a client, and return its answer; tests override this to fail."""
        return answer_bytes(self.nodes[node], data).to_bytes()
