"""Whether files of the Hugging Face hub are to be had, before its package is asked for them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path


def ask_once(model: str, *files: str) -> None:
    """See that one of some files is in the hub's cache, or that the hub answers: its package tries for half a minute.

    Args:
        model: a hub name; in a local folder nothing is looked for.
        files: any of which will do. That the hub has none of them is left to whoever reads them.

    Raises:
        ConnectionError: the hub cannot be reached, or has no such model.
    """
    if Path(model).is_dir():
        return
    hub = import_module("huggingface_hub")
    try:
        if not any(isinstance(hub.try_to_load_from_cache(model, file), str) for file in files):
            hub.get_hf_file_metadata(hub.hf_hub_url(model, files[0]))
    except hub.errors.EntryNotFoundError:
        return
    except Exception as error:  # whatever the hub's client and its network layers raise
        raise ConnectionError(str(error) or repr(error)) from error
