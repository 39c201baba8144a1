"""House rule: every random number comes from a generator that someone passed: a step is a function of its seed."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
NEVER = {"rand_like", "randn_like", "randint_like", "seed", "initial_seed", "get_rng_state", "set_rng_state"}
FILLS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_", "log_normal_"}
NUMPY = {"default_rng", "Generator"}  # all else in np.random draws from the global state


def name_of(node):
    """The dotted name of an expression, or ""."""
    if isinstance(node, ast.Attribute):
        inner = name_of(node.value)
        return f"{inner}.{node.attr}" if inner else f"?.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(text):
    """Calls that draw from a global generator, with their lines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [alias.name for alias in node.names]
            if module in ("random", "numpy.random") or "random" in names:
                yield node.lineno, f"import of {module or 'random'}"
            if module == "torch" and (DRAWS | NEVER) & set(names):
                yield node.lineno, f"import of torch.{names}"
        if not isinstance(node, ast.Call):
            continue
        whole = name_of(node.func)
        *owner, last = whole.split(".")
        given = any(keyword.arg == "generator" for keyword in node.keywords)
        torch_owns, numpy_owns = owner == ["torch"], owner in (["np", "random"], ["numpy", "random"])
        if torch_owns and (last in NEVER or (last in DRAWS and not given)):
            yield node.lineno, whole
        if numpy_owns and (last not in NUMPY or not node.args):
            yield node.lineno, whole
        if last in FILLS and owner and not given and owner[-1] != "init":
            yield node.lineno, whole


@pytest.mark.parametrize(
    "line",
    [
        "torch.rand(3)",
        "x = torch.randn(3, device=d)",
        "torch.randint(3, (2,))",
        "torch.randperm(4, dtype=k)",
        "torch.randn_like(x)",
        "x.normal_()",
        "torch.empty(3).uniform_(0, 1)",
        "np.random.rand(3)",
        "np.random.seed(0)",
        "np.random.default_rng()",
        "import random",
        "from random import choice",
        "from numpy import random",
        "from torch import randn",
        "numpy.random.permutation(4)",
    ],
)
def test_the_rule_catches(line):
    assert list(offences(line))


@pytest.mark.parametrize(
    "line",
    [
        "torch.rand(3, generator=rng)",
        "np.random.default_rng([seed, 1])",
        "rng.random()",
        "nn.init.normal_(p, std=0.02)",
        "x.normal_(generator=rng)",
        "flow.randn(shape, rng)",
        "torch.random.fork_rng(devices=[])",
    ],
)
def test_the_rule_allows(line):
    assert not list(offences(line))


def test_nothing_draws_from_a_global_generator():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 30
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {what}" for path in files for line, what in offences(path.read_text())
    ]
    assert not found


def test_the_global_seed_is_set_in_one_place_only_and_put_back():
    # layers initialise themselves from the global generator; run.py lends it to them and takes it back
    seeds = {path.name: path.read_text().count("torch.manual_seed(") for path in SOURCE.rglob("*.py")}
    assert {name: count for name, count in seeds.items() if count} == {"run.py": 1}
    text = (SOURCE / "forcing/train/run.py").read_text()
    assert text.index("fork_rng") < text.index("torch.manual_seed(")
