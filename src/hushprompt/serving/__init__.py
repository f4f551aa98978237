"""A trained prompt in use: loaded from its file, asked about images, served, and exported."""
