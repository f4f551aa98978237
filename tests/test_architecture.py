"""The house rules that no other test would miss: imports go one way, and noise is drawn in one file."""

import ast
import functools
import re
from pathlib import Path

import pytest

import hushprompt

SOURCE = Path(hushprompt.__file__).parent
ROOMS = [
    {""},
    {"config", "data", "privacy"},
    {"models"},
    {"features", "prompts"},
    {"statistics"},
    {"methods"},
    {"evaluation"},
    {"runs"},
    {"federation"},
    {"jobs"},
    {"audits", "deployment"},
    {"reporting"},
    {"serving"},
    {"api"},
    {"cli"},
]
"""From the ground up; a room may import itself and what stands before it."""
DOORS = {"__init__.py", "__main__.py"}
"""Files beside the rooms that may import all of them."""
FILES = sorted(path for path in SOURCE.rglob("*.py"))


def room(path):
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(tree):
    """Imported modules of the package, without those for type checkers only."""
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hushprompt"):
            yield node.module if node.module != "hushprompt" else "hushprompt." + node.names[0].name
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("hushprompt"))


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache
def nodes(path):
    return list(ast.walk(tree_of(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    if room(path) == "" and path.name in DOORS:
        return
    own = next(level for level, rooms in enumerate(ROOMS) if room(path) in rooms)
    below = set().union(*ROOMS[:own])
    for module in imports(tree_of(path)):
        target = module.split(".")[1] if len(module.split(".")) > 1 else ""
        if (SOURCE / target).is_dir() and target != room(path):
            assert target in below, f"{path} imports {module}"


def test_the_privacy_parts_do_not_know_each_other():
    for name in ("clipping", "noise", "sampling", "accounting"):
        tree = ast.parse((SOURCE / "privacy" / f"{name}.py").read_text())
        own = (
            {"bisection", "least_epsilon", "losses", "releases", "renyi"} if name == "accounting" else {"system_random"}
        )
        known = {f"hushprompt.privacy.{part}" for part in own}
        assert not [m for m in imports(tree) if m.startswith("hushprompt.privacy") and m not in known]


DRAWS = {"normal", "standard_normal", "randn", "randn_like", "normal_", "gauss", "normalvariate"}
NOT_NOISE = {
    "models/toy.py": "weights of the toy model",
    "federation/rounding.py": "made-up examples, by which a model's rounding is measured",
    "models/embedded_network.py": "weights before they are loaded",
    "methods/context.py": "start of a context",
    "prompts/factorization.py": "start of a power iteration",
    "statistics/contexts.py": "made-up images of classes that were released",
}


def test_gaussian_noise_is_drawn_in_the_noise_module_alone():
    found = set()
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and node.attr in DRAWS:
                found.add(str(path.relative_to(SOURCE)))
    assert found == {"privacy/noise.py", *NOT_NOISE}


GAUSSIAN, BATCH, SUMS, BASE = (
    f"privacy/mechanisms/{name}.py" for name in ("gaussian", "batch_clipping", "class_sums", "base")
)


def test_only_a_mechanism_releases_and_only_aggregation_adds_up():
    names = ("add_gaussian", "add_secure_gaussian", "clipped_sum", "clipped_means", "clipped_class_sums")
    users: dict[str, set[str]] = {name: set() for name in (*names, "clipped_gram", "add_up")}
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in users:
                users[node.func.id].add(str(path.relative_to(SOURCE)))
    assert users == {
        "add_gaussian": {GAUSSIAN, BATCH, SUMS, "privacy/metrics.py"},
        "add_secure_gaussian": {GAUSSIAN, SUMS, "privacy/metrics.py"},
        "clipped_sum": {GAUSSIAN},
        "clipped_class_sums": {SUMS},
        "clipped_gram": {SUMS},
        "clipped_means": {BATCH},
        # The audit stands in for a server; the base adds up chunks of one client's examples.
        "add_up": {"federation/payload.py", "audits/mechanism_audit.py", BASE},
    }


def test_nobody_prints_but_the_command_line_and_no_global_randomness():
    for path in FILES:
        tree = tree_of(path)
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert "print" not in calls, path
        assert not calls & {"torch.manual_seed", "np.random.seed", "np.random.rand", "random.random", "hash"}, path


def test_the_public_names_are_what_all_says():
    assert hushprompt.__all__ == sorted(hushprompt.__all__)
    for name in hushprompt.__all__:
        assert hasattr(hushprompt, name)


def test_the_architecture_page_agrees_with_the_tree():
    page = (SOURCE.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)/` \|", page, flags=re.MULTILINE)
    assert sorted(told) == sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
    ranks = {name: rank for rank, rooms in enumerate(ROOMS) for name in rooms}
    assert [ranks[name] for name in told] == sorted(ranks[name] for name in told)


def definitions(kind):
    """All definitions of a kind in the package, with the files that they stand in."""
    return [(node, path) for path in FILES for node in nodes(path) if isinstance(node, kind)]


def test_no_two_classes_share_a_name():
    homes: dict[str, list[str]] = {}
    for node, path in definitions(ast.ClassDef):
        homes.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_docstrings_say_what_is_returned_not_given():
    documented = definitions((ast.ClassDef, ast.FunctionDef, ast.Module))
    assert not [str(path) for node, path in documented if (ast.get_docstring(node) or "").startswith("Give")]


def test_no_circle_between_files():
    names = {module_name(path) for path in FILES}
    unseen = {name: imported_files(path, names) for path in FILES for name in [module_name(path)]}
    while unseen:
        leaves = {name for name, targets in unseen.items() if not targets & unseen.keys()}
        assert leaves, f"these import each other in a circle, or look at one: {sorted(unseen)}"
        unseen = {name: targets for name, targets in unseen.items() if name not in leaves}


def module_name(path):
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_files(path, names):
    """Modules of the package that a file imports when it is imported itself, not inside a function."""
    tree = tree_of(path)
    later = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    later |= {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in later:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in names else node.module)
    return (found & names) - {module_name(path), "hushprompt"}
