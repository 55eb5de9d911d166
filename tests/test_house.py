"""The rules of the house that a parser can check: who may import what, where a float may stand, how each file begins.

Run: `python -m pytest tests/test_house.py`. The rooms are in the README ("Reading order"). Read next: `protocol.py`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("miner", "validator", "stake")
ORDER = (  # who stands before may be imported, and nobody who stands after
    *("protocol", "sim", "scoring", "runtime", "wire", "liquidity", "markets", "evm", "store", "chain", "executor"),
    *("spine", "audit", "status", "doctor", *PROGRAMS),
)
ROOMS = [name for name in ORDER if (ROOT / name).is_dir()]
FILES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
CORE = ("protocol", "sim", "scoring", "liquidity", "wire.codec", "wire.text")  # pure: the same everywhere, for ever
IMPURE = {  # what the core must not touch: the clock, chance, files, the network, other processes, floating point
    *("asyncio", "concurrent", "threading", "multiprocessing", "subprocess", "signal", "select", "selectors", "queue"),
    *("time", "datetime", "calendar", "zoneinfo", "sched", "random", "secrets", "uuid", "platform", "locale"),
    *("os", "pathlib", "io", "shutil", "tempfile", "glob", "fileinput", "sys", "argparse", "getpass", "logging"),
    *("lzma", "gzip", "bz2", "zipfile", "tarfile", "sqlite3", "dbm", "shelve", "pickle", "mmap", "importlib"),
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "xmlrpc", "webbrowser"),
    *("math", "cmath", "statistics", "array", "struct", "ctypes"),
}
ONLY_IN = {"bittensor": {"chain", "wire"}, "web3": {"evm", "executor"}}
LAZY = {  # who may import inside a function, and why
    "doctor": "it runs where no package is installed yet, and says so",
    "spine": "web3 takes seconds to import, and only a real pool needs it",
    "audit": "web3 takes seconds to import, and only an audit on the chain needs it",
}
FILE_LINES, FUNCTION_LINES = 500, 60
LONGER_FILES = {"sim.py": 600}  # one idea, the pool
LONGER_FUNCTIONS = {"Pool.swap", "FastPool.swap", "FastPool._walk"}  # the loop of the contract, in its order
# What is too long today. These tables may only shrink, until they are empty.
STILL_LONG_FILES: dict[str, int] = {}
STILL_LONG_FUNCTIONS: dict[str, int] = {}


def name_of(path: Path) -> str:
    """`evm/rpc.py` is `evm.rpc`, and a room is its own name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


TREES = {name_of(path): tree_of(path) for path in FILES}
PURE = [name for name in TREES if name.startswith(CORE)]


def imports(node: ast.AST, inside: str = "") -> Iterator[tuple[str, str]]:
    """Every import below a node, wherever it stands: (module, name of the outermost function or class it stands in)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "a full name says in which room it is"
            below = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from ((name if name in TREES else child.module, inside) for name in below)
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from imports(child, inside or (child.name if named else ""))


def root(module: str) -> str:
    return module.partition(".")[0]


def functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, int]]:
    """Every function or method below a node with the number of its lines, without its docstring."""
    for child in ast.iter_child_nodes(node):
        name = f"{within}.{child.name}".strip(".") if hasattr(child, "name") and child.name else within
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first = child.body[0]
            told = first.end_lineno - first.lineno + 1 if ast.get_docstring(child, clean=False) is not None else 0
            yield name, child.end_lineno - child.lineno + 1 - told
        yield from functions(child, name)


# ---------------------------------------------------------------------------------------------------------------------
# Who imports whom


def test_the_parser_sees_every_way_to_import():
    source = """
import a.b, c
from d.e import f
from wire import codec
def g():
    if 1:
        import h
class I:
    def j(self):
        from k import l
"""
    found = [("a.b", ""), ("c", ""), ("d.e", ""), ("wire.codec", ""), ("h", "g"), ("k", "I")]
    assert list(imports(ast.parse(source))) == found


def test_seven_files_stand_at_the_top_and_everything_else_is_in_a_room():
    assert {path.stem for path in ROOT.glob("*.py")} == {"protocol", "sim", "scoring", "store", *PROGRAMS}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("name", TREES)
def test_imports_go_down_only_those_inside_functions_too(name):
    for module, inside in imports(TREES[name]):
        if root(module) in ORDER:
            above = ORDER.index(root(module)) > ORDER.index(root(name))
            assert not above, f"{name} ({inside or 'top'}) imports {module}, which is above it"
            assert not {root(name), root(module)} <= set(PROGRAMS) or module == name, "no program imports another"


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: {module for module, _ in imports(tree) if module in TREES} for name, tree in TREES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert len(order) == len(TREES) and order[0] != "validator"


@pytest.mark.parametrize("name", TREES)
def test_imports_stand_at_the_top_but_where_there_is_a_reason(name):
    found = [module for module, inside in imports(TREES[name]) if inside]
    assert not found or root(name) in LAZY, f"{name} imports {found} inside a function"


@pytest.mark.parametrize("name", PURE)
def test_the_pure_core_imports_the_standard_library_and_itself(name):
    """Only in `sim` may a logarithm guess where a tick is, which integers then decide, and a command say its end."""
    for module, inside in imports(TREES[name]):
        if module in TREES:
            assert module.startswith(CORE), f"{name} imports {module}: the core is pure"
            continue
        assert root(module) in sys.stdlib_module_names, f"{name} imports {module}"
        if (name, module) != ("sim", "math") and (name, module, inside) != ("sim", "sys", "main"):
            assert root(module) not in IMPURE, f"{name} imports {module}: the core is pure"


@pytest.mark.parametrize("name", PURE)
def test_the_pure_core_opens_nothing_and_prints_only_in_commands(name):
    """Builtins need no import: `open`, `input`, `eval` and the like stand nowhere, `print` in `main` alone."""
    for statement in TREES[name].body:
        allowed = {"print"} if isinstance(statement, ast.FunctionDef) and statement.name == "main" else set()
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                forbidden = {"open", "input", "print", "eval", "exec", "compile", "__import__", "breakpoint"} - allowed
                assert node.func.id not in forbidden, f"{name} line {node.lineno}: {node.func.id}()"


@pytest.mark.parametrize("name", [name for name in PURE if name != "sim"])
def test_what_decides_a_score_has_no_floats(name):
    """No literal, no `float()`, no `/`, where no Decimal is made: those are made from strings and integers alone."""
    for node in ast.walk(TREES[name]):
        where = f"{name} line {getattr(node, 'lineno', 0)}"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float | complex)), where
        assert not (isinstance(node, ast.Attribute) and node.attr in ("from_float", "as_integer_ratio", "hex")), where
        if isinstance(node, ast.Name) and name not in ("protocol", "wire.codec"):  # which refuse floats by name
            assert node.id not in ("float", "complex", "from_float"), where


@pytest.mark.parametrize("name", ["liquidity.books", "liquidity.tape"])
def test_a_book_never_divides_but_downwards_to_integers(name):
    for node in ast.walk(TREES[name]):
        assert not isinstance(getattr(node, "op", None), ast.Div), f"{name} line {node.lineno}: / gives a float"


@pytest.mark.parametrize("name", TREES)
def test_bittensor_and_web3_stay_behind_their_seams(name):
    found = {root(module) for module, _ in imports(TREES[name])}
    for package, places in ONLY_IN.items():
        assert package not in found or root(name) in places, f"{package} may be imported in {sorted(places)} only"


def test_requirements_name_exactly_what_is_imported():
    """Also what another package would bring along: what is imported is declared."""
    declared = {
        re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith(("#", "-"))
    }
    imported = {root(module) for tree in TREES.values() for module, _ in imports(tree)}
    imported -= {*sys.stdlib_module_names, *ORDER}
    assert {name.lower().replace("_", "-") for name in imported} == declared


def test_make_installs_exact_versions_of_all_that_is_needed_and_runs_no_package_script():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = dict(line.split("==") for line in lines if not line.startswith("#"))
    files = [ROOT / name for name in ("requirements.txt", "requirements-dev.txt")]
    todo = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if re.match(r"\w", line)]
    seen, extras = set(), {""}
    while todo:
        needed = Requirement(todo.pop())
        name = canonicalize_name(needed.name)
        if name not in seen and (not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras)):
            seen, extras, todo = seen | {name}, extras | needed.extras, todo + (metadata.requires(name) or [])
    assert len(seen) > 50 and {name: metadata.version(name) for name in seen} == {
        name: exact.get(name) for name in seen
    }
    made, rules = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", ".npmrc"))
    assert "$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt\n" in made
    assert "npm ci --ignore-scripts " in made and {"ignore-scripts=true", "omit-lockfile-registry-resolved=true"} <= {
        *rules.splitlines()
    }
    asked, locked = (json.loads((ROOT / name).read_text()) for name in ("package.json", "package-lock.json"))
    _, *packages = locked["packages"].values()
    assert all("integrity" in one and not one.keys() & {"resolved", "hasInstallScript"} for one in packages)
    asked = asked["devDependencies"] | asked["optionalDependencies"]
    assert asked == {name: locked["packages"][f"node_modules/{name}"]["version"] for name in asked}


# ---------------------------------------------------------------------------------------------------------------------
# How long, and how it begins


def test_no_file_is_too_long_to_be_read_at_one_sitting():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    long = {name: count for name, count in lines.items() if count > LONGER_FILES.get(name, FILE_LINES)}
    assert not {name: count for name, count in long.items() if count > STILL_LONG_FILES.get(name, 0)}


def test_no_function_is_too_long_to_be_seen_at_once():
    found = [(module, name, n) for module, tree in TREES.items() for name, n in functions(tree)]
    long = [(module, name, n) for module, name, n in found if n > FUNCTION_LINES and name not in LONGER_FUNCTIONS]
    assert not [(module, name, n) for module, name, n in long if n > STILL_LONG_FUNCTIONS.get(name, 0)]


@pytest.mark.parametrize(
    "path", [*FILES, *sorted(ROOT.glob("bench/*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_file_opens_with_what_it_is_and_how_to_run_it_or_what_to_read_next(path):
    text = ast.get_docstring(tree_of(path)) or ""
    first = text.partition("\n")[0]
    assert first.endswith((".", "?")) and len(first) > 20, "the first line says what the file is"
    if path.name != "__init__.py":
        assert re.search(r"python (-m \w+|\S+\.py)|Read(:| (next|first|\w+:))", text), "how to run it, or what to read"
    named = re.findall(r"`([\w/]+\.py)`", text)
    assert all((path.parent / name).exists() or (ROOT / name).exists() for name in named), named


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_it_is_what_it_may_import_and_which_files_to_read(room):
    text = ast.get_docstring(TREES[room])
    assert "ay import" in text or "bove all rooms" in text or "others bring" in text, text
    assert len(TREES[room].body) == 1, "a room's own file is its docstring"
    for command in re.findall(r"python -m (\w+)", text):
        assert command == room and (ROOT / room / "__main__.py").exists()
