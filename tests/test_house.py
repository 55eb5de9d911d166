"""The rules of the house that a parser can check: who may import what, where a float may stand, how each file begins.

Run: `python -m pytest tests/test_house.py`. The table is in the README ("Reading order"). Read next: `protocol.py`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted([*ROOT.glob("*.py"), *ROOT.glob("mechanisms/*.py")])
OURS = {path.stem for path in ROOT.glob("*.py")} | {"mechanisms"}
CORE = ("protocol", "sim", "recording", "books", "scoring", "rounds")  # each may import those before it
OUTSIDE = {  # what the core must not touch: the clock, chance, files, the network, other processes, floating point
    *("asyncio", "concurrent", "threading", "multiprocessing", "subprocess", "signal", "select", "selectors", "queue"),
    *("time", "datetime", "calendar", "zoneinfo", "sched", "random", "secrets", "uuid", "platform", "locale"),
    *("os", "pathlib", "io", "shutil", "tempfile", "glob", "fileinput", "sys", "argparse", "getpass", "logging"),
    *("lzma", "gzip", "bz2", "zipfile", "tarfile", "sqlite3", "dbm", "shelve", "pickle", "mmap", "importlib"),
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "xmlrpc", "webbrowser"),
    *("math", "cmath", "statistics", "array", "struct", "ctypes"),
}
ALLOWED = {"recording": {"pathlib", "lzma", "argparse", "sys", "io"}, "sim": {"sys", "math"}}
ONLY_IN = {"bittensor": {"chain", "wire"}, "web3": {"contracts", "executor"}}
NEVER = [("miner", "validator"), ("validator", "miner")]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(node: ast.AST, inside: str = "") -> Iterator[tuple[str, str]]:
    """Every import below a node, wherever it stands: (module, name of the outermost function or class it stands in)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "relative imports do not work in flat modules"
            yield child.module, inside
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from imports(child, inside or (child.name if named else ""))


def roots(path: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in imports(tree_of(path))}


def test_the_parser_sees_every_way_to_import():
    source = """
import a.b, c
from d.e import f
def g():
    if 1:
        import h
class I:
    def j(self):
        from k import l
"""
    assert list(imports(ast.parse(source))) == [("a.b", ""), ("c", ""), ("d.e", ""), ("h", "g"), ("k", "I")]


@pytest.mark.parametrize("name", CORE)
def test_the_pure_core_imports_the_standard_library_and_earlier_parts_of_itself(name):
    """In one direction; only a command hands over: `sim.main` to `recording`, `recording.main` to the terminal."""
    earlier = set(CORE[: CORE.index(name)])
    for module, inside in imports(tree_of(ROOT / f"{name}.py")):
        root = module.partition(".")[0]
        if (name, module, inside) in (("sim", "recording", "main"), ("recording", "runtime", "main")):
            continue
        assert root in earlier or (root in sys.stdlib_module_names and root not in OURS), f"{name}.py imports {module}"
        assert root not in OUTSIDE - ALLOWED.get(name, set()), f"{name}.py imports {module}: the core is pure"


@pytest.mark.parametrize("name", CORE)
def test_the_pure_core_opens_nothing_and_prints_only_in_commands(name):
    """Builtins need no import: `open`, `input`, `eval` and the like stand nowhere, `print` in `main` alone."""
    for statement in tree_of(ROOT / f"{name}.py").body:
        allowed = {"print"} if isinstance(statement, ast.FunctionDef) and statement.name == "main" else set()
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                forbidden = {"open", "input", "print", "eval", "exec", "compile", "__import__", "breakpoint"} - allowed
                assert node.func.id not in forbidden, f"{name}.py line {node.lineno}: {node.func.id}()"


@pytest.mark.parametrize("name", ["books", "rounds", "scoring"])
def test_what_decides_a_score_has_no_floats(name):
    """No literal, no `float()`, no `math`; a Decimal is made from strings and integers, so none comes in that way."""
    for node in ast.walk(tree_of(ROOT / f"{name}.py")):
        where = f"{name}.py line {getattr(node, 'lineno', 0)}"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float | complex)), where
        assert not (isinstance(node, ast.Name) and node.id in ("float", "complex", "math", "from_float")), where
        assert not (isinstance(node, ast.Attribute) and node.attr in ("from_float", "as_integer_ratio", "hex")), where


def test_a_book_never_divides_but_downwards_to_integers():
    for node in ast.walk(tree_of(ROOT / "books.py")):
        assert not isinstance(getattr(node, "op", None), ast.Div), f"books.py line {node.lineno}: / gives a float"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_bittensor_and_web3_stay_behind_their_seams(path):
    for package, places in ONLY_IN.items():
        assert package not in roots(path) or path.stem in places, f"{package} may be imported in {sorted(places)} only"


@pytest.mark.parametrize(("who", "whom"), NEVER)
def test_miner_and_validator_never_import_each_other(who, whom):
    """Nor do they through what they import: the miner is a file to copy, and takes no validator along."""
    seen, waiting = set(), [who]
    while waiting:
        name = waiting.pop()
        if name not in seen and (ROOT / f"{name}.py").exists():
            seen.add(name)
            waiting += roots(ROOT / f"{name}.py") & OURS
    assert whom not in seen and len(seen) > 3


@pytest.mark.parametrize("path", [*PROGRAMS, *sorted(ROOT.glob("bench/*.py"))], ids=lambda path: path.stem)
def test_every_file_opens_with_what_it_is_and_how_to_run_it_or_what_to_read_next(path):
    text = ast.get_docstring(tree_of(path)) or ""
    first = text.partition("\n")[0]
    assert first.endswith((".", "?")) and len(first) > 20, f"{path.name}: the first line says what the file is"
    assert re.search(r"python \S+\.py|Read (next|first)", text), f"{path.name}: how to run it, or what to read next"
    named = re.findall(r"`(\w+)\.py`", text)
    assert all((path.parent / f"{n}.py").exists() or (ROOT / f"{n}.py").exists() for n in named), (
        f"{path.name}: {named}"
    )


def test_requirements_name_exactly_what_is_imported():
    """Also what another package would bring along: what is imported is declared."""
    declared = {
        re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith(("#", "-"))
    }
    imported = set().union(*map(roots, PROGRAMS)) - set(sys.stdlib_module_names) - OURS
    assert {name.lower().replace("_", "-") for name in imported} == declared
