"""All benchmarks, or some: `python -m benchmarks [SECTION ...] [--short] [--out FILE.json] [--docs]`.

`python -m benchmarks real --root DIR` measures accuracy on real features instead; `--help` there says how.
`python -m benchmarks ceilings` measures what the embedded features hold without privacy.

Every section is a file of this folder and runs in a process of its own, one after another. README.md says what is in
them and how they measure.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

from rich.console import Console

from benchmarks import ceilings, profiles, real
from benchmarks.measure import in_process, machine
from benchmarks.rows import Result, screen, with_figures
from benchmarks.sections import SECTIONS, measure

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    """Measure, draw, write."""
    if sys.argv[1:2] == ["real"]:
        real.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["ceilings"]:
        ceilings.main()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; none: all")
    parser.add_argument("--short", action="store_true", help="fewer passes and rounds: under 3 minutes in all")
    parser.add_argument("--out", type=Path, help="JSON file to write; sections that are not named stay as it has them")
    parser.add_argument("--docs", action="store_true", help="also put the figures of --out into docs/benchmarks.md")
    parser.add_argument("--keep", action="store_true", help="measure nothing: take the figures of --out as they are")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="also write profiles of single steps there")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}. There are: {', '.join(SECTIONS)}.")
    if (arguments.docs or arguments.keep) and not arguments.out:
        parser.error("--docs and --keep are about the figures of a file: name it with --out.")
    result = Result(machine(), arguments.short, {})
    if arguments.keep:
        result = Result.read(arguments.out)
    elif arguments.sections and arguments.out and arguments.out.exists():
        result = Result.read(arguments.out).measured_on(result)
    failed = []
    for name in () if arguments.keep else arguments.sections or SECTIONS:
        try:
            section = in_process(measure, name, arguments.short)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        Console(width=130).print(screen(section))
        result.sections[name] = section
        if arguments.out:
            result.write(arguments.out)
    if arguments.docs:
        PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), arguments.out.stem, result), encoding="utf-8")
    if arguments.profile:
        in_process(profiles.write, arguments.profile)
    sys.exit(f"Failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
