"""Keep the results of a sweep in the repository, and write the tables of the README from them.

    python tools/results.py runs/embedded --out results/embedded/grid --title "The embedded grid"
    python tools/results.py runs/wide --out results/embedded/grid-wide --also results/embedded/grid
        --readme results/embedded/grid-wide/README.md
    python tools/results.py runs/statistics --out results/embedded/statistics --against form=head,class_prior=1
    python tools/results.py runs/statistics-shared --out results/embedded/statistics-shared --by partition
        --against form=head,noise_at=server
    python tools/results.py --readme README.md
    python tools/results.py --readme docs/results.md
    python tools/results.py runs/clients --out results/embedded/clients --by partition.num_clients
    python tools/results.py runs/drawings-mllm --out results/mllm --against "init_words=as in a catalog"
        --readme docs/mllm.md

Of each finished run it keeps what a table needs (`config.toml`, `summary.json`, `privacy.json`) in `runs.jsonl.gz`
and, beside it, what `hushprompt compare` prints. With `--report`, the page (made from the whole run folders), the
tables in LaTeX and CSV and the privacy-utility figure go to a folder of their own. All are of the runs in `--out` and
`--also` together; without a sweep, they are made again from what is kept. Without these folders a page is written from
all that is kept of the embedded task. In the README it replaces what stands
between `<!-- results: NAME -->` and `<!-- end -->`: no number there is typed by hand.
"""

from __future__ import annotations

import argparse
import functools
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from hushprompt import files
from hushprompt.evaluation.significance import Difference
from hushprompt.reporting import comparison_tables, figures, formats, page, tables
from hushprompt.reporting.comparison import Comparison, compare, in_order, of_runs
from hushprompt.reporting.pooling import EPSILON, Group, pool_strictly
from hushprompt.runs import archive, reader

NUM_CLIENTS, SHARES, NOISE_AT = "partition.num_clients", "partition.name", "privacy.noise_at"
DP_FPL = "method.name=dp_fpl, method.factorization=orthonormal, method.keep_residual=true, method.rank=8"
ROOT = Path(__file__).parent.parent / "results" / "embedded"
KEPT = ("grid-wide", "grid", "statistics", "statistics-shared", "clients")
"""What is kept of the embedded task."""
GENERATIVE = ROOT.parent / "mllm"
"""What is kept of the generative model's task."""
WRITTEN = "init_words=as in a catalog"
"""What its rows are tested against: the written words that its prompts start from, untrained."""
HEADS = ("class_statistics", "class_means", "linear_probe", "least_squares")
"""Methods that train no prompt."""
FIRST = (*HEADS[:3], "dp_fpl", "promptfl", "promptfolio", "zero_shot")
STATISTICS = "method.name=class_statistics, method.form=head, method.class_prior=1"
RIVALS = ("dp_fpl", "promptfl", "class_means", "linear_probe", "least_squares", "zero_shot")
"""What class statistics are tested against."""
FORMS = {"embeddings": ", as unit-norm embeddings", "contexts": ", as class-specific contexts"}
FIRST_BUDGETS = ("inf", "8", "2", "0.4", "0.1")
SCORES = {"local": "local", "neighbor": "neighbor", "harmonic_mean": "harmonic mean"}
LEVEL = 0.05
WHOLE = {"break_long_words": False, "break_on_hyphens": False}


def main() -> None:
    """Keep runs, then write tables, figure, report and README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, nargs="?", help="folder of a sweep; none: what is kept already")
    parser.add_argument("--out", type=Path, help="where its results are kept; none: only a page is written")
    parser.add_argument("--also", type=Path, action="append", default=[], help="kept results that belong to them")
    parser.add_argument("--by", action="append", default=[], help="setting with tables for each of its values")
    parser.add_argument("--against", default="promptfl", help="row that others are tested against")
    parser.add_argument("--readme", type=Path, help="page whose tables are written")
    parser.add_argument("--report", type=Path, help="folder for report, LaTeX, CSV and figure; none: not made")
    parser.add_argument("--title", default="", help="heading of the report")
    args = parser.parse_args()
    if args.sweep is not None:
        keep(args.sweep, args.out)
    folders = [args.out, *args.also] if args.out else [ROOT / name for name in KEPT]
    if args.out is not None:
        write_tables(folders, args.out, args.report, args.by, args.against)
    if args.report is not None:
        whole = [args.sweep or args.out, *args.also]
        files.write_text(args.report / "report.html", page.report(whole, args.title))
        figures.figure(reader.find(folders).runs, "budget", args.report / "utility.svg")
    if args.readme is not None:
        files.write_text(args.readme, filled(args.readme.read_text(encoding="utf-8"), groups_of(folders)))


def keep(sweep: Path, out: Path) -> None:
    """Pack what tables need of every finished run."""
    archive.pack(archive.finished(sweep), out / archive.FILE, archive.RESULTS)


def write_tables(folders: Sequence[Path], out: Path, more: Path | None, by: Sequence[str], against: str) -> None:
    """Write what `hushprompt compare --columns epsilon --against ROW` prints, and to `more` as LaTeX and CSV."""
    compared = of_runs(folders, by=by, against=against, test="t", ignore=())
    grids = comparison_tables.tables_of(compared, "epsilon", list(SCORES))
    files.write_text(out / "table.md", _wrapped("\n".join(map(formats.markdown, grids))))
    if more is not None:
        files.write_text(more / "table.tex", "\n".join(map(formats.latex, grids)))
        files.write_text(more / "table.csv", comparison_tables.csv_text(compared))


def _wrapped(page: str) -> str:
    """Break the lines of a page that are no table, as other pages have them."""
    lines = (line if line.startswith("|") else textwrap.fill(line, 100, **WHOLE) for line in page.split("\n"))  # type: ignore[arg-type]
    return "\n".join(lines)


def groups_of(folders: Sequence[Path]) -> list[Group]:
    """Read kept results."""
    return pool_strictly(reader.find(folders).runs)


def filled(readme: str, groups: Sequence[Group]) -> str:
    """Write every table that the page has a place for; that of the generative model is made from its own runs."""
    for name, make in README.items():
        place = re.compile(rf"(<!-- results: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if place.search(readme):
            made = make(groups_of([GENERATIVE]) if name.startswith("generative") else groups)
            readme = place.sub(lambda found, made=made: f"{found[1]}{made}{found[2]}", readme)  # type: ignore[misc]
    return readme


def budgets(groups: Sequence[Group]) -> str:
    """Return the harmonic mean of every prompt method by budget."""
    own = [group for group in _prompts(groups) if not is_other_rank(group)]
    own.sort(key=lambda group: (_asked(group) != "inf", -group.spread("harmonic_mean").mean))
    return by_budget(own, "", name, lambda group: _score(group, "harmonic_mean"))


def first(groups: Sequence[Group]) -> str:
    """Return local and neighbor accuracy of a few methods by budget: the first table that a reader sees."""
    own = [group for group in _disjoint(groups) if group.label("method.name") in FIRST]
    own = [group for group in own if name(group).removesuffix(", with class prior") == group.title]
    own = [group for group in own if not is_other_rank(group) and _asked(group) in ("-", *FIRST_BUDGETS)]
    own.sort(key=lambda group: (_asked(group) != "inf", -group.spread("local").mean))
    return by_budget(
        own, "local / neighbor", name, lambda group: f"{_score(group, 'local')} / {_score(group, 'neighbor')}"
    )


def paired(groups: Sequence[Group]) -> str:
    """Return by how many points class statistics lie above others, seed by seed, and whether that is chance."""
    lines: dict[str, list[str]] = {}
    for budget in FIRST_BUDGETS:
        same = [group for group in _disjoint(groups) if group.label("method.name") in RIVALS or _is_statistics(group)]
        same = [group for group in same if not is_other_rank(group) and _asked(group) in (budget, "-")]
        same = [group for group in same if name(group) == group.title]
        compared = compare("", same, against=STATISTICS, test="t")
        for at, group in enumerate(compared.groups):
            if at in compared.references:
                cells = [_above(*compared.differences[score][at]) for score in ("local", "neighbor")]
                lines.setdefault(group.title, []).append(" / ".join(cells))
    header = ["local / neighbor", *map(_heading, FIRST_BUDGETS)]
    return _markdown([header, *([f"above {title}", *cells] for title, cells in lines.items())])


def _above(difference: Difference, p: float | None, sign: int = -1) -> str:
    """Write by how much the reference lies above a row (sign 1: the row above it), in points, and p if there is one."""
    points = f"{sign * 100 * difference.mean:+.1f}"
    if p is None:
        return points
    return f"{points} (p < 0.001)" if p < 0.001 else f"{points} (p = {p:.3f})"


def shared(groups: Sequence[Group]) -> str:
    """Return local and neighbor accuracy by budget where clients share classes and nobody's are public."""
    own = [group for group in groups if group.label(SHARES) != "disjoint_classes"]
    own = [group for group in own if group.label(NUM_CLIENTS) in ("10", "25")]
    own = [group for group in own if group.label("method.name") in ("class_statistics", *RIVALS)]
    own = [group for group in own if _asked(group) in ("-", *FIRST_BUDGETS)]
    own.sort(key=lambda group: (_shares(group), FIRST.index(group.label("method.name")), -len(group.label(NOISE_AT))))
    return by_budget(
        own, "local / neighbor", _with_shares, lambda group: f"{_score(group, 'local')} / {_score(group, 'neighbor')}"
    )


def _disjoint(groups: Sequence[Group]) -> list[Group]:
    """Return what was run where no clients share classes."""
    return [group for group in groups if group.label(SHARES) == "disjoint_classes"]


def _prompts(groups: Sequence[Group]) -> list[Group]:
    """Return what was run there, but for heads on features."""
    return [group for group in _disjoint(groups) if group.label("method.name") not in HEADS]


def _with_shares(group: Group) -> str:
    """Name a method, how classes are shared, and where the noise is."""
    noise = ", noise at the clients" if group.label(NOISE_AT) == "client" and _is_statistics(group) else ""
    seeds = "" if len(group.arms) == 5 else f" ({len(group.arms)} seeds)"
    return f"{_shares(group)}: {name(group)}{noise}{seeds}"


def _shares(group: Group) -> str:
    """Say how classes are shared."""
    how = "IID" if group.label(SHARES) == "iid" else f"Dirichlet {group.label('partition.alpha')}"
    return f"{how}, {group.label(NUM_CLIENTS)} clients"


def _is_statistics(group: Group) -> bool:
    """True for class statistics in any form."""
    return group.label("method.name") == "class_statistics"


def ranks(groups: Sequence[Group]) -> str:
    """Give local and neighbor accuracy of DP-FPL by rank and budget."""
    own = [group for group in _prompts(groups) if _is_dp_fpl(group)]
    own.sort(key=lambda group: int(group.label("method.rank")))
    return by_budget(
        own,
        "rank",
        lambda group: group.label("method.rank"),
        lambda group: f"{_score(group, 'local')} / {_score(group, 'neighbor')}",
    )


def rivals(groups: Sequence[Group]) -> str:
    """Return which prompts are significantly better than DP-FPL, score by score and budget by budget."""
    lines, groups = [["epsilon", *SCORES.values()]], _prompts(groups)
    for budget in _budgets(groups):
        same = [group for group in groups if not is_other_rank(group) and budget in (_asked(group), "-")]
        same += [group for group in groups if group.epsilon is None and group not in same]
        same = [group for group in same if not _is_only_named(group)]
        compared = compare("", same, against=DP_FPL, test="t")
        lines.append([_heading(budget), *(_better(compared, score) for score in SCORES)])
    return _markdown(lines)


def clients(groups: Sequence[Group]) -> str:
    """Give local and neighbor accuracy of every method and budget by the number of clients."""
    numbers = in_order([group.label(NUM_CLIENTS) for group in groups], is_descending=False)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for group in sorted(groups, key=lambda group: -group.spread("local").mean):
        line = lines.setdefault((_asked(group), name(group)), {})
        line[group.label(NUM_CLIENTS)] = f"{_score(group, 'local')} / {_score(group, 'neighbor')}{_proven(group)}"
    budgets = ["-", *_budgets(groups)]
    body = [
        [_heading(budget), title, *(cells.get(number, "") for number in numbers)]
        for (budget, title), cells in sorted(lines.items(), key=lambda line: budgets.index(line[0][0]))  # stable
    ]
    return _markdown([["epsilon", "", *(f"{number} clients" for number in numbers)], *body])


def generative(groups: Sequence[Group], *, is_whole: bool = True) -> str:
    """Return accuracies of the preset drawings-mllm, and how many points each row lies above the written words.

    Where it is not the whole table, of the others only what was trained with noise is there; p stays the whole one's.
    """
    compared = compare("", groups, against=WRITTEN, test="t")
    lines = [["", "epsilon", *SCORES.values(), "above the written words, local", "above the written words, neighbor"]]
    for at, group in enumerate(compared.groups):
        if not is_whole and at in compared.references and _asked(group) in ("-", "inf"):
            continue
        tested = [compared.differences[score].get(at) for score in ("local", "neighbor")]
        above = [_above(*pair, sign=1) if pair else "" for pair in tested]
        budget = _heading(_asked(group)) + _proven(group)
        lines.append([name(group), budget, *(_score(group, score) for score in SCORES), *above])
    return _markdown(lines)


README: dict[str, Callable[[Sequence[Group]], str]] = {
    "first": first,
    "paired": paired,
    "shared": shared,
    "budgets": budgets,
    "ranks": ranks,
    "rivals": rivals,
    "clients": clients,
    "generative": generative,
    "generative_first": functools.partial(generative, is_whole=False),
}


def by_budget(groups: Sequence[Group], head: str, label: Callable[[Group], str], cell: Callable[[Group], str]) -> str:
    """Give a line a label and a column a budget; what uses no private data is said once, in every column."""
    columns = _budgets(groups)
    lines: dict[str, dict[str, str]] = {}
    for group in sorted(groups, key=lambda group: group.epsilon is None):
        line = lines.setdefault(label(group), {})
        for budget in columns if group.epsilon is None else [_asked(group)]:
            line[budget] = cell(group) + _proven(group)
    body = [[title, *(cells.get(budget, "") for budget in columns)] for title, cells in lines.items()]
    return _markdown([[head, *map(_heading, columns)], *body])


def name(group: Group) -> str:
    """Name a method, and its ablation; an untrained context by the words that it has."""
    words = group.label("method.init_words")
    if group.label("method.name") == "random_prompt" and words not in ("-", ""):
        return f'"{words}" behind the question'
    ablation = ""
    if group.label("method.keep_residual") == "false":
        ablation = ", no residual"
    elif group.label("method.factorization") == "none":
        ablation = ", full-rank personal prompt"
    ablation += FORMS.get(group.label("method.form"), "")
    if group.label("method.class_prior") not in ("-", "1", "1.0"):
        ablation += ", with class prior"
    return group.title + ablation


def is_other_rank(group: Group) -> bool:
    """True for DP-FPL at another rank than 8."""
    return _is_dp_fpl(group) and group.label("method.rank") != "8"


def _is_dp_fpl(group: Group) -> bool:
    """True for DP-FPL itself, at any rank."""
    return (
        group.label("method.name") == "dp_fpl"
        and group.label("method.keep_residual") == "true"
        and group.label("method.factorization") == "orthonormal"
    )


def _asked(group: Group) -> str:
    """Write the budget that was asked for; "-" where nothing private is used."""
    return "-" if group.epsilon is None else group.label(EPSILON)


def _is_only_named(group: Group) -> bool:
    """True where the budget that was asked for is not the one that is proven."""
    return group.epsilon is not None and tables.epsilon_text(group.epsilon) != _asked(group)


def _proven(group: Group) -> str:
    """Say what is proven where it is not what was asked for."""
    return f" (proven: {tables.epsilon_text(group.epsilon)})" if _is_only_named(group) else ""


def _budgets(groups: Sequence[Group]) -> list[str]:
    """Give the budgets, no noise first."""
    return in_order([_asked(group) for group in groups if group.epsilon is not None], is_descending=True)


def _heading(budget: str) -> str:
    """Name a column."""
    return "no noise" if budget == "inf" else budget


def _score(group: Group, score: str) -> str:
    """Write mean and deviation in percent."""
    return group.spread(score).text()


def _better(compared: Comparison, score: str) -> str:
    """List what is significantly better, the best first, with the difference in points."""
    found = [
        (difference.mean, name(compared.groups[at]))
        for at, (difference, p) in compared.differences[score].items()
        if difference.mean > 0 and p is not None and p < LEVEL
    ]
    if all(p is None for _, p in compared.differences[score].values()):
        return "not tested"
    return "; ".join(f"{title} +{100 * points:.1f}" for points, title in sorted(found, reverse=True)) or "nothing"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """Give a table whose first line is its header."""
    header, *body = lines
    return "".join("| " + " | ".join(line) + " |\n" for line in (header, ["---"] * len(header), *body))


if __name__ == "__main__":
    main()
