"""What the command `hushprompt` and `python -m hushprompt` call."""

import gc


def main() -> None:
    """Run the command line; what its imports make is no garbage, and looking through it takes a tenth of the start."""
    gc.disable()
    from hushprompt.cli import main as cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
