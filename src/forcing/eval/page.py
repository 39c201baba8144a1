"""The parts of the report that tell what was measured: headline, promises, table, charts."""

from collections.abc import Sequence
from html import escape
from itertools import groupby

from forcing.eval.plots import Axes, Series, chart
from forcing.eval.results import BY_NAME, SHORT_NOTE, Metric, Results, Row, short
from forcing.eval.rows import FAMILIES
from forcing.eval.tables import best, measured, noted, number, spread
from forcing.eval.verdict import TEACHER, Claim, verdict

STUDENT = "dmd-2"
DRIFT_ROWS = ("real", "ar", "ar-2", "ar-1", "cd-2", "cd-1", "dmd-2", "dmd-1")


def section(name: str, title: str, body: str, lead: str = "") -> str:
    """A titled part of the page; `lead` is its first paragraph, plain text."""
    first = f"<p class=lead>{escape(lead)}</p>" if lead else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{first}{body}</section>'


def missing(text: str) -> str:
    """A note that something is not there, and what would make it."""
    return f"<p class=missing>{escape(text)}</p>"


def headline(results: Results) -> str:
    """Four figures, and which promises were kept."""
    teacher, student = results.row(TEACHER), results.row(STUDENT)
    tiles = _tiles(teacher, student) if teacher and student else []
    claims = verdict(results)
    kept = sum(claim.passed for claim in claims)
    boxes = "".join(f"<div class=tile><b>{value}</b><span>{escape(text)}</span></div>" for value, text in tiles)
    summary = f"<summary>{kept} of {len(claims)} promises kept</summary>" if claims else ""
    listed = "".join(_claim(claim) for claim in claims)
    promises = f"<details class=verdict open>{summary}<ul>{listed}</ul></details>" if claims else ""
    return (f"<div class=tiles>{boxes}</div>" if boxes else "") + promises


def results_table(results: Results) -> str:
    """The whole table; on a phone it scrolls beside its row names."""
    metrics = measured(results)
    groups = [(group, len(list(members))) for group, members in groupby(metrics, key=lambda metric: metric.group)]
    top = "".join(f'<th colspan="{count}" scope=colgroup>{escape(group)}</th>' for group, count in groups)
    starts = {next(metric.name for metric in metrics if metric.group == group) for group, _ in groups}
    under = "".join(
        f'<th scope=col class="{_edge(metric, starts)}" title="{escape(metric.meaning)}">{escape(metric.title)}</th>'
        for metric in metrics
    )
    winners = {metric.name: best(results, metric) for metric in metrics}
    lines = []
    for row in results.rows:
        cells = "".join(
            _cell(metric, row, row.name in winners[metric.name], _edge(metric, starts)) for metric in metrics
        )
        begins = " class=begins" if row.name in ("base", "ar-4", "cd-4", "dmd-4") else ""
        name = f'<th scope=row><i class="key row-{row.name}"></i>{escape(row.label)}</th>'
        lines.append(f"<tr{begins}>{name}{cells}</tr>")
    notes = "".join(f"<dt>{escape(m.group)}: {escape(m.title)}</dt><dd>{escape(m.meaning)}</dd>" for m in metrics)
    below = f"<p><small>{SHORT_NOTE}</small></p>" if noted(results) else ""
    return (
        f"<div class=scroll><table class=results><thead><tr><td></td>{top}</tr><tr><td></td>{under}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>{below}"
        f"<details><summary>What the columns mean</summary><dl>{notes}</dl></details>"
    )


def trade(results: Results) -> str:
    """Quality against price: Frechet distance over network evaluations a frame, a line for each family of models."""
    figures, shown = [], set()
    for metric in ("frechet_told", "frechet_free", "frechet_nothing"):
        series = [_family(results, family, metric) for family in FAMILIES]
        drawn = [each for each in series if each.points]
        shown |= {each.row for each in drawn}
        real, most = results.row("real"), max((x for each in drawn for x, _ in each.points), default=2.0)
        floor = real.mean(metric) if real else None
        if floor is not None and drawn:
            drawn.append(Series("real", "the real world against itself", [(2.0, floor), (most, floor)]))
        title = f"{BY_NAME[metric].group}, {BY_NAME[metric].title} (lower is better)"
        figures.append(chart(drawn, Axes(title, "network passes a frame (at the dots: steps)", log_x=True, log_y=True)))
    rows = [(family, label) for family, label in FAMILIES.items() if family in shown]
    return _figures(figures, [*rows, ("real", "real against real")])


def drift(results: Results) -> str:
    """Each drifting metric over the frames of the rollouts, with the range over seeds."""
    rows = [row for name in DRIFT_ROWS if (row := results.row(name)) is not None]
    bucket = results.about["measure"]["bucket"]
    figures = []
    for metric in (each for each in measured(results) if each.drift):
        series = [_drifting(row, metric, bucket) for row in rows if row.curve(metric.name)]
        axes = Axes(
            f"{metric.group}, {metric.title}",
            "frame",
            log_y=metric.kind == "number",
            percent=metric.kind == "share",
            floor=metric.kind == "ratio",
        )
        figures.append(chart(series, axes))
    return _figures(figures, [(row.name, row.label) for row in rows])


def legend(rows: Sequence[tuple[str, str]]) -> str:
    """Which colour is whose: (row name, label) each."""
    items = "".join(f'<li><i class="key row-{name}"></i>{escape(label)}</li>' for name, label in rows)
    return f"<ul class=legend>{items}</ul>"


def _figures(figures: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    drawn = "".join(f"<figure>{figure}</figure>" for figure in figures if figure)
    return (
        f"{legend(rows)}<div class=charts>{drawn}</div>" if drawn else missing("Nothing was measured for this chart.")
    )


def _tiles(teacher: Row, student: Row) -> list[tuple[str, str]]:
    tiles = []
    passes = teacher.mean("passes"), student.mean("passes")
    if passes[0] and passes[1]:
        text = f"network passes a frame: {passes[1]:.0f} instead of {passes[0]:.0f}"
        tiles.append((f"{passes[0] / passes[1]:.0f}&times; fewer", text))
    ms = teacher.mean("ms"), student.mean("ms")
    if ms[0] and ms[1]:
        tiles.append(
            (f"{1000 / ms[1]:.0f} frames/s", f"{ms[1]:.0f} ms a frame on this machine; teacher {ms[0]:.0f} ms")
        )
    control = teacher.mean("control"), student.mean("control")
    if control[0] and control[1]:
        text = f"of the teacher's control ({100 * control[1]:.1f} % of tiles right)"
        tiles.append((f"{100 * control[1] / control[0]:.0f} %", text))
    frechet = teacher.mean("frechet_free"), student.mean("frechet_free")
    if frechet[0] and frechet[1]:
        text = f"the teacher's Frechet distance, no key told ({frechet[1]:.1f} against {frechet[0]:.1f})"
        tiles.append((f"{frechet[1] / frechet[0]:.2f}&times;", text))
    return tiles


def _claim(claim: Claim) -> str:
    mark, word = ("kept", "kept") if claim.passed else ("missed", "missed")
    return (
        f'<li class="{mark}"><span class=mark>{word}</span> {escape(claim.claim)}'
        f"<small>{escape(claim.numbers)}</small></li>"
    )


def _cell(metric: Metric, row: Row, wins: bool, edge: str) -> str:
    text, around = number(metric, row.mean(metric.name)), spread(metric, row)
    text = f"<b>{text}</b>" if wins else text
    if short(metric, row):
        text += f'<abbr title="{escape(SHORT_NOTE)}">*</abbr>'
    return f'<td class="{edge}">{text}<small>{around.replace("-", "&ndash;")}</small></td>'


def _edge(metric: Metric, starts: set[str]) -> str:
    return "edge" if metric.name in starts else ""


def _family(results: Results, family: str, metric: str) -> Series:
    found = []
    for row in results.rows:
        passes, value = row.mean("passes"), row.mean(metric)
        if row.name.partition("-")[0] == family and passes is not None and value is not None:
            steps = row.name.partition("-")[2] or str(results.about["measure"]["many"])
            found.append((passes, value, steps))
    found.sort()
    notes = [steps for *_, steps in found]
    return Series(family, FAMILIES[family], [(x, y) for x, y, _ in found], notes=notes)


def _drifting(row: Row, metric: Metric, bucket: int) -> Series:
    middle = [(number + 0.5) * bucket for number in range(len(row.curve(metric.name)))]
    points = list(zip(middle, row.curve(metric.name), strict=True))
    seeds = list(zip(*row.curves[metric.name], strict=True))
    band = [(x, min(values), max(values)) for x, values in zip(middle, seeds, strict=True)]
    return Series(row.name, row.label, points, band if len(row.curves[metric.name]) > 1 else ())
