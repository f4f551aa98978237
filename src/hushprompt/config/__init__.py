"""The config of a run: its dataclasses, how TOML becomes one, and the presets."""
