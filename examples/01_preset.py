"""Train the embedded preset, which needs no download, and look at what comes out: about a minute.

python examples/01_preset.py
"""

from rich import print  # shows tables; a notebook shows them by itself

import hushprompt as hp


def main(**sections) -> hp.Run:
    """Train; `sections` change the preset, such as training={"num_rounds": 5}."""
    run = hp.run("embedded", **sections)
    print(run.table())

    # An epsilon is never shown without what gives it meaning.
    for audience, guarantee in run.guarantees.items():
        print(f"{audience}: {guarantee.statement()}")

    # A client's prompt is a tensor that stands for itself, with its guarantee beside it.
    print(run.prompt(client=0))
    print(f"page: {hp.report(run, run.folder / 'report.html')}")
    return run


if __name__ == "__main__":
    main()
