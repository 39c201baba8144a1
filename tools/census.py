"""How large the library is: code lines, longest functions, and what is beyond the limits (exit code 1).

    python tools/census.py [--all]

Blank lines, comments and docstrings are not counted. Recipes are data, and do not count towards the whole.
"""

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "forcing"
DATA = SOURCE / "recipes"

LIBRARY, FILE, STATEMENTS, ARGUMENTS = 16000, 500, 30, 8
WINDOW = 8  # code lines; the same ones in two places are one thing that has no name yet

_QUIET = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


@dataclass(frozen=True)
class Function:
    """Where it is, its name, and how many statements and arguments it has (`self` and `cls` aside)."""

    path: Path
    name: str
    line: int
    statements: int
    arguments: int


@dataclass(frozen=True)
class File:
    """`code`: its code lines, without indentation."""

    path: Path
    code: tuple[str, ...]
    functions: tuple[Function, ...]


def read(path: Path) -> File:
    """Count one file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    kept = _lines(text) - _docstrings(tree)
    lines = text.splitlines()
    return File(path, tuple(lines[n - 1].strip() for n in sorted(kept)), tuple(_functions(path, tree)))


def library() -> list[File]:
    """Every file of the package."""
    return [read(path) for path in sorted(SOURCE.rglob("*.py"))]


def beyond(files: list[File]) -> list[str]:
    """What is larger than it may be, in words."""
    counted = [file for file in files if not file.path.is_relative_to(DATA)]
    total = sum(len(file.code) for file in counted)
    found = [f"the library has {total} code lines; at most {LIBRARY}"] if total > LIBRARY else []
    for file in files:
        name = file.path.relative_to(ROOT)
        if len(file.code) > FILE:
            found.append(f"{name} has {len(file.code)} code lines; at most {FILE}")
        for function in file.functions:
            where = f"{name}:{function.line} {function.name}"
            if function.statements > STATEMENTS:
                found.append(f"{where} has {function.statements} statements; at most {STATEMENTS}")
            if function.arguments > ARGUMENTS:
                found.append(f"{where} has {function.arguments} arguments; at most {ARGUMENTS}")
    return found


def repeated(files: list[File]) -> list[tuple[str, ...]]:
    """Places that share WINDOW code lines in a row (imports aside); the first window of each run."""
    seen: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for file in files:
        code = [line for line in file.code if not line.startswith(("import ", "from "))]
        for start in range(len(code) - WINDOW + 1):
            seen[tuple(code[start : start + WINDOW])].append((file.path, start))
    twice = {tuple(places) for places in seen.values() if len(places) > 1}
    # a longer repetition is many windows: keep those whose predecessor is not repeated, too
    first = [each for each in twice if tuple((path, start - 1) for path, start in each) not in twice]
    return sorted(tuple(str(path.relative_to(ROOT)) for path, _ in places) for places in first)


def _lines(text: str) -> set[int]:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _QUIET:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


def _docstrings(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def _functions(path: Path, tree: ast.Module) -> Iterator[Function]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        inside = [each for each in ast.walk(node) if isinstance(each, ast.stmt) and each is not node]
        strings = [each for each in inside if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)]
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = sum(argument.arg in ("self", "cls") for argument in given[:1])
        yield Function(path, node.name, node.lineno, len(inside) - len(strings), len(given) - own)


def main(args: list[str]) -> int:
    """Print the census; 1 if anything is beyond its limit."""
    files = library()
    counted = [file for file in files if not file.path.is_relative_to(DATA)]
    functions = sorted((f for file in files for f in file.functions), key=lambda f: -f.statements)
    many = None if "--all" in args else 10
    out = [f"{sum(len(file.code) for file in counted):6} code lines of {LIBRARY}, {len(files)} files"]
    out += [
        f"{len(file.code):6} {file.path.relative_to(ROOT)}" for file in sorted(files, key=lambda f: -len(f.code))[:many]
    ]
    out += ["longest functions, in statements:"]
    out += [f"{f.statements:6} {f.path.relative_to(ROOT)}:{f.line} {f.name}" for f in functions[:many]]
    twice = repeated(files)
    if twice:
        out += [f"{WINDOW} or more equal code lines in a row:", *(f"       {' and '.join(places)}" for places in twice)]
    wrong = beyond(files)
    out += [f"TOO LARGE: {text}" for text in wrong] or ["within the limits"]
    sys.stdout.write("\n".join(out) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
