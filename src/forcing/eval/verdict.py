"""What the method promises, checked against what was measured."""

from collections.abc import Callable
from math import isfinite
from typing import NamedTuple

from forcing.eval.results import BY_NAME, Results, Row
from forcing.eval.tables import number

TEACHER = "ar"


class Claim(NamedTuple):
    """A promise, whether it was kept, and the numbers that say so."""

    claim: str
    passed: bool
    numbers: str


def verdict(results: Results) -> list[Claim]:
    """Every promise that the rows measured allow to check; one whose rows are absent is left out."""
    teacher = results.row(TEACHER)
    claims = []
    if teacher is not None:
        claims += _kept(results, teacher)
    claims += _beaten(results)
    return claims + _held(results)


def promises(results: Results) -> str:
    """The verdict in Markdown."""
    lines = [
        f"- {'kept' if claim.passed else '**missed**'}: {claim.claim}. {claim.numbers}" for claim in verdict(results)
    ]
    return "\n".join(lines) + "\n"


def _kept(results: Results, teacher: Row) -> list[Claim]:
    bounds = [
        ("dmd-2", 0.95, ("control", "control_rollout"), "keeps the teacher's control"),
        ("dmd-1", 0.9, ("control", "control_rollout"), "keeps the teacher's control"),
        ("dmd-2", 1.25, ("frechet_free", "frechet_nothing"), "looks as real as the teacher where the outcome is open"),
        ("dmd-2", 0.95, ("valid_new", "valid_free", "valid_nothing"), "draws tiles of the world, as the teacher does"),
        ("dmd-2", 0.8, ("diversity_free", "diversity_nothing"), "is as varied as the teacher"),
        ("dmd-2", 0.8, ("motion_free", "motion_nothing"), "moves as much as the teacher"),
        ("dmd-2", 1.25, ("frechet_told",), "looks as real as the teacher where every key is told"),
        ("dmd-2", 0.8, ("motion_told",), "moves as much as the teacher where every key is told"),
        ("dmd-2", 0.95, ("prompt",), "shows the world that the prompt asks for, as the teacher does"),
    ]
    return [
        claim
        for name, bound, metrics, text in bounds
        if (claim := _ratios(results.row(name), teacher, metrics, bound, text)) is not None
    ]


def _ratios(row: Row | None, teacher: Row, metrics: tuple[str, ...], bound: float, text: str) -> Claim | None:
    if row is None:
        return None
    parts, passed = [], True
    for metric in metrics:
        mine, theirs = row.mean(metric), teacher.mean(metric)
        if theirs is None or not isfinite(theirs):
            continue
        if mine is None or not isfinite(mine):
            passed, parts = False, [*parts, _unmeasured(metric)]
            continue
        passed &= mine <= bound * theirs if BY_NAME[metric].better == "low" else mine >= bound * theirs
        ratio = f" ({mine / theirs:.2f}x)" if theirs else ""
        parts.append(f"{_called(metric)} {_number(metric, mine)} against {_number(metric, theirs)}{ratio}")
    if not parts:
        return None
    at = "at most" if bound > 1 else "at least"
    return Claim(f"{row.label}: {text} ({at} {bound}x)", passed, "; ".join(parts))


def _beaten(results: Results) -> list[Claim]:
    claims = []
    for steps in (2, 1):
        cut = results.row(f"{TEACHER}-{steps}")
        for family in ("cd", "dmd"):
            row = results.row(f"{family}-{steps}")
            if row is None or cut is None:
                continue
            parts, passed = [], True
            for metric in ("frechet_free", "frechet_nothing"):
                mine, theirs = row.span(metric), cut.span(metric)
                if theirs is None or not all(map(isfinite, theirs)):
                    continue
                if mine is None or not all(map(isfinite, mine)):
                    passed, parts = False, [*parts, _unmeasured(metric)]
                    continue
                passed &= mine[1] < theirs[0]  # clearly: the worst sampling seed beats the best
                parts.append(f"{_called(metric)} {_range(metric, mine)} against {_range(metric, theirs)}")
            if parts:
                text = f"{row.label}: clearly better than the teacher cut to as many steps, with every sampling seed"
                claims.append(Claim(text, passed, "; ".join(parts)))
    return claims


def _held(results: Results) -> list[Claim]:
    row, teacher = results.row("dmd-2"), results.row(TEACHER)
    if row is None:
        return []
    frames = results.about["measure"]["frames"]
    bounds: list[tuple[str, Callable[[float, float], bool]]] = [
        ("control_rollout", lambda first, last: last >= 0.95 * first),
        ("valid_free", lambda first, last: last >= 0.95 * first),
        ("diversity_free", lambda first, last: last >= 0.8 * first),
        ("motion_free", lambda first, last: last >= 0.8 * first),
    ]
    parts, passed = [], True
    for metric, holds in bounds:
        curve, asked = _curve(row, metric), teacher is None or len(_curve(teacher, metric)) > 1
        if len(curve) > 1:
            passed &= holds(curve[0], curve[-1])
            parts.append(f"{_called(metric)} {_number(metric, curve[0])} first, {_number(metric, curve[-1])} last")
        elif asked:
            passed, parts = False, [*parts, _unmeasured(metric)]
    mine, theirs = _curve(row, "frechet_free"), _curve(teacher, "frechet_free") if teacher else []
    if theirs and not mine:
        passed, parts = False, [*parts, _unmeasured("frechet_free")]
    elif mine and theirs:
        passed &= mine[-1] <= 1.25 * theirs[-1]
        parts.append(f"{_called('frechet_free')} at the end {mine[-1]:.1f}, the teacher's {theirs[-1]:.1f}")
    if not parts:
        return []
    return [Claim(f"{row.label}: rollouts of {frames} frames hold", passed, "; ".join(parts))]


def _curve(row: Row, metric: str) -> list[float]:
    curve = row.curve(metric)
    return curve if all(map(isfinite, curve)) else []


def _unmeasured(metric: str) -> str:
    # What could not be taken (nothing shown that could be right) is no sign of quality.
    return f"{_called(metric)} could not be measured"


def _called(metric: str) -> str:
    return f"{BY_NAME[metric].group.split(' ')[0]} ({BY_NAME[metric].title})"


def _number(metric: str, value: float) -> str:
    return number(BY_NAME[metric], value) + (" %" if BY_NAME[metric].kind == "share" else "")


def _range(metric: str, span: tuple[float, float]) -> str:
    return f"{_number(metric, span[0])}-{_number(metric, span[1])}"
