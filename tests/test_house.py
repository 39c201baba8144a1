"""The house rules that a machine can check: who imports whom, sizes, words, and what must run where."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mutations
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "forcing"

# A module may import those above its line, its own package, and (same line) nothing else.
ORDER = (
    ("__init__", "shapes", "files"),
    ("flow", "cond", "layout"),
    ("backbone", "unipc"),
    ("guidance", "rollout", "ring"),
    ("backbones", "codecs", "text", "actions", "media"),
    ("stages", "convert"),
    ("data",),
    ("recipe", "envs", "kit"),
    ("world", "fixture"),
    ("engine",),
    ("eval",),
    ("train",),
    ("pipeline",),
    ("recipes",),
    ("serve",),
    ("cli",),
    ("__main__",),
)
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers", "wrapper", "handler"}
PROPER = {"UMT5"}  # a network is called what its makers called it
FOREIGN = {"envs/gym.py"}  # deals with objects that others made
BARE = (  # the method, which must run in an image that holds torch, numpy, safetensors and einops alone
    "forcing.flow",
    "forcing.layout",
    "forcing.cond",
    "forcing.guidance",
    "forcing.rollout",
    "forcing.backbones.tiny",
    "forcing.backbones.wan",
    "forcing.codecs.wan_vae",
    "forcing.codecs.taehv",
    "forcing.text.umt5",
    "forcing.convert",
    "forcing.stages.diffusion",
    "forcing.stages.consistency",
    "forcing.stages.dmd",
    "forcing.recipe",
    "forcing.codecs.linear",
    "forcing.data.clips",
    "forcing.world",
    "forcing.train.loop",
    "forcing.train.state",
    "forcing.train.checkpoint",
)
ABSENT = (
    "diffusers",
    "transformers",
    "ftfy",
    "lmdb",
    "tyro",
    "rich",
    "PIL",
    "av",
    "gymnasium",
    "minigrid",
    "matplotlib",
    "jaxtyping",
    "beartype",
)


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(path: Path, *kinds: type) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, kinds))


def imports(path: Path) -> set[str]:
    """Modules imported anywhere in a file, also within functions. `from forcing import flow` is forcing.flow."""
    found = set()
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.module == "forcing":
            found |= {f"forcing.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
        else:
            found.add(node.module or "")
    return found


def line_of(part: str) -> int:
    return next(i for i, names in enumerate(ORDER) if part in names)


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_part_has_its_place():
    parts = {part_of(path) for path in modules()}
    assert parts == {name for names in ORDER for name in names}


def upwards(path: Path) -> list[str]:
    """Imports of a file that go against ORDER."""
    own = part_of(path)
    ours = [module for module in sorted(imports(path)) if module.startswith("forcing.")]
    beside = [(module, module.split(".")[1]) for module in ours if module.split(".")[1] != own]
    return [f"{name_of(path)} imports {module}" for module, part in beside if line_of(part) >= line_of(own)]


def test_imports_point_one_way():
    wrong = [text for path in modules() for text in upwards(path)]
    assert not wrong, wrong


def test_only_the_command_line_imports_recipes():
    wrong = [
        name_of(path)
        for path in modules()
        if part_of(path) not in ("cli", "recipes") and any(m.startswith("forcing.recipes") for m in imports(path))
    ]
    assert not wrong, wrong


def test_stages_know_nothing_of_training():
    for path in (SOURCE / "stages").glob("*.py"):
        banned = [m for m in imports(path) if m.startswith(("forcing.train", "forcing.recipe", "torch.distributed"))]
        assert not banned, (name_of(path), banned)


def test_networks_know_nothing_of_files_logs_or_devices():
    for folder in ("backbones", "stages"):
        for path in (SOURCE / folder).glob("*.py"):
            roots = {module.split(".")[0] for module in imports(path)}
            banned = roots & {"os", "pathlib", "logging", "wandb", "tensorboard", "rich"}
            assert not banned, (name_of(path), banned)
            assert "torch.distributed" not in imports(path), name_of(path)


def test_imports_are_absolute():
    relative = [name_of(p) for p in modules() for node in nodes(p, ast.ImportFrom) if node.level]
    assert not relative, relative


def test_only_the_command_line_prints():
    wrong = []
    for path in modules():
        if part_of(path) == "cli" or name_of(path) == "serve/events.py":  # which an operator reads
            continue
        for node in nodes(path, ast.Call):
            called = ast.unparse(node.func)
            if called in (
                "print",
                "Console",
                "rich.print",
                "sys.stdout.write",
                "sys.stderr.write",
                "logging.getLogger",
            ):
                wrong.append(f"{name_of(path)}:{node.lineno} {called}")
    assert not wrong, wrong


def test_every_module_says_what_it_is():
    silent = [name_of(path) for path in modules() if not ast.get_docstring(tree(path))]
    assert not silent, silent


def test_nothing_is_nameless():
    parts = {part.removesuffix(".py") for path in modules() for part in path.relative_to(SOURCE).parts}
    classes = {node.name for path in modules() for node in nodes(path, ast.ClassDef)}
    endings = tuple(word.capitalize() for word in NAMELESS)
    assert not parts & NAMELESS
    assert not [name for name in classes - PROPER if name.endswith(endings) or re.search(r"\d$", name)]


def test_sizes():
    spec = importlib.util.spec_from_file_location("census", ROOT / "tools" / "census.py")
    census = importlib.util.module_from_spec(spec)
    sys.modules["census"] = census
    spec.loader.exec_module(census)
    assert census.beyond(census.library()) == []
    assert census.main([]) == 0


def test_no_default_for_what_we_own():
    wrong = []
    for path in modules():
        if name_of(path) in FOREIGN:
            continue
        for node in nodes(path, ast.Call):
            called = ast.unparse(node.func)
            if called == "hasattr" or (called == "getattr" and len(node.args) > 2):
                wrong.append(f"{name_of(path)}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, wrong


def test_no_error_is_swallowed():
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in modules()
        for node in nodes(path, ast.ExceptHandler)
        if node.type is None or all(isinstance(step, ast.Pass) for step in node.body)
    ]
    assert not wrong, wrong


def names_in(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


def test_one_word_for_each_thing():
    # student, teacher, critic; sigma. A random stream is `rng`, or a torch.Generator, which is not a role.
    others = re.compile(
        r"timesteps?|real_score|fake_score|generator_\w+|\w+_generator|noise_level_index", re.IGNORECASE
    )
    wrong = [f"{name_of(p)}: {name}" for p in modules() for name in names_in(p) if others.fullmatch(name)]
    wrong += [
        f"{name_of(path)}: the role {node.value!r}"
        for path in modules()
        for node in nodes(path, ast.Constant)
        if node.value in ("generator", "real_score", "fake_score")
    ]
    assert not wrong, wrong


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that is or would be in the repository."""
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, text=True
    )
    if asked.returncode or not asked.stdout:
        kept = ("src", "tests", "tools", "docs", "Makefile", "README.md", "pyproject.toml", "constraints.txt")
        found = [p for name in kept for p in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))]
    else:
        found = [ROOT / name for name in asked.stdout.split("\0") if name]
    return tuple(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            yield path, data.decode("utf-8")


def test_no_path_of_one_machine():
    places = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|opt/(?:pypi|wheels))/")
    wrong = [f"{p.relative_to(ROOT)}: {m[0]}" for p, text in texts() for m in places.finditer(text)]
    assert not wrong, wrong


def test_no_registry_is_named():
    hosts = re.compile(
        r"pypi\.|pythonhosted|download\.pytorch\.org|artifactory|index-url|find-links|simple/", re.IGNORECASE
    )
    for name in ("constraints.txt", "pyproject.toml", "Makefile", ".ci/run"):
        found = hosts.findall((ROOT / name).read_text())
        assert not found, (name, found)


def test_constraints_are_plain():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    names = [line.partition("==")[0].lower() for line in lines]
    assert len(set(names)) == len(names) > 20 and "forcing" not in names and "torchvision" not in names


def test_nothing_large_or_secret_is_tracked():
    large = [str(path.relative_to(ROOT)) for path in tracked() if path.stat().st_size > 10_000_000]
    assert not large, large


_BLOCK = """
import importlib, json, sys
modules, absent = json.loads(sys.argv[1])
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
for module in modules:
    importlib.import_module(module)
print(sorted(set(absent) & {name.split(".")[0] for name in sys.modules}))
"""


def test_the_method_needs_torch_alone():
    asked = json.dumps([BARE, ABSENT])
    done = subprocess.run([sys.executable, "-c", _BLOCK, asked], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("rule", ["bare", "pass"])
def test_the_check_for_swallowed_errors_works(rule, tmp_path, monkeypatch):
    path = tmp_path / "sample.py"
    path.write_text(
        {"bare": "try:\n    f()\nexcept:\n    g()\n", "pass": "try:\n    f()\nexcept OSError:\n    pass\n"}[rule]
    )
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    with pytest.raises(AssertionError):
        test_no_error_is_swallowed()


def test_the_check_of_directions_works(tmp_path, monkeypatch):
    (tmp_path / "flow.py").write_text("def late():\n    from forcing import world\n    return world\n")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    with pytest.raises(AssertionError):
        test_imports_point_one_way()


def test_every_line_that_is_broken_on_purpose_is_there():
    assert not mutations.misplaced(SOURCE)
