"""Flower carries the messages: its Grid at the server, its ClientApp at a client, nothing else of it is used."""
