"""Flower as the transport: its Grid at the server and its ClientApp at a client; nothing else of it is used."""
