"""A federation of separate machines: messages, the server and the client node; `flower/` is the transport."""
