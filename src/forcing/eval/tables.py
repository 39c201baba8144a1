"""Results for people: a table in the terminal, and one in Markdown."""

from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from forcing.eval.results import METRICS, SHORT_NOTE, Metric, Results, Row, short

TERMINAL = {  # the columns that fit into a terminal, with names that do
    "control": "control\nahead",
    "control_rollout": "control\nrollout",
    "prompt": "right\nprompt",
    "valid_new": "valid\nnew",
    "valid_nothing": "valid\nnothing",
    "frechet_told": "Frechet\ntold",
    "frechet_free": "Frechet\nfree",
    "frechet_nothing": "Frechet\nnothing",
    "diversity_free": "diverse\nfree",
    "motion_free": "motion\nfree",
    "passes": "passes\na frame",
    "ms": "ms\na frame",
}
ENDS = ("real", "ar", "ar-1", "cd-1")  # rows that a line is drawn under
FEW = ("ar-", "cd-", "dmd-")  # rows of few sampling steps begin so


def number(metric: Metric, value: float | None) -> str:
    """A value as it is printed: shares in percent, ratios with two digits, other numbers with about three."""
    if value is None:
        return "-"
    if metric.kind == "share":
        return f"{100 * value:.1f}"
    if metric.kind == "ratio":
        return f"{value:.2f}"
    return f"{value:.0f}" if value >= 100 or metric.name == "passes" else f"{value:.1f}"


def spread(metric: Metric, row: Row) -> str:
    """The range over seeds as it is printed, "" where it shows nothing."""
    span = row.span(metric.name)
    if span is None or len(row.values[metric.name]) < 2 or metric.name == "passes":
        return ""
    low, high = (number(metric, value) for value in span)
    return "" if low == high else f"{low}-{high}"


def measured(results: Results) -> list[Metric]:
    """The metrics that some row has."""
    return [metric for metric in METRICS if any(metric.name in row.values for row in results.rows)]


def best(results: Results, metric: Metric) -> set[str]:
    """Rows of few steps that are best in `metric`, as printed; none for cost, which the number of steps decides."""
    if metric.group == "Cost":
        return set()
    rows = {row.name: row.mean(metric.name) for row in results.rows if row.name.startswith(FEW)}
    found = {name: value for name, value in rows.items() if value is not None}
    if not found:
        return set()
    keys = {"high": lambda value: -value, "low": lambda value: value, "one": lambda value: abs(value - 1)}
    key = keys[metric.better]
    winner = min(found.values(), key=key)
    return {name for name, value in found.items() if number(metric, value) == number(metric, winner)}


def noted(results: Results) -> bool:
    """Whether SHORT_NOTE belongs below a table of `results`."""
    return any(short(metric, row) for metric in METRICS for row in results.rows)


def table(results: Results) -> Table:
    """For the terminal: the main columns, one line a row, the mean over seeds, the best few-step row bold."""
    metrics = [metric for metric in measured(results) if metric.name in TERMINAL]
    caption = "shares in percent; diversity and motion over the real world's; mean over seeds"
    if noted(results):
        caption += f"\n{SHORT_NOTE}"
    out = Table(title=_title(results), caption=caption, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    out.add_column("", no_wrap=True)
    for metric in metrics:
        out.add_column(TERMINAL[metric.name], justify="right", no_wrap=True)
    winners = {metric.name: best(results, metric) for metric in metrics}
    for row in results.rows:
        cells = [number(metric, row.mean(metric.name)) + "*" * short(metric, row) for metric in metrics]
        marked = [
            f"[bold]{cell}[/bold]" if row.name in winners[metric.name] else cell
            for metric, cell in zip(metrics, cells, strict=True)
        ]
        out.add_row(row.label, *marked, end_section=row.name in ENDS)
    return out


def markdown(results: Results) -> str:
    """For a README: one table for each group of metrics, mean and range over seeds, and what each column means."""
    parts = [f"{_title(results)}. Shares in percent; mean over seeds, range in brackets; best few-step row bold."]
    for group, members in groupby(measured(results), key=lambda metric: metric.group):
        metrics = list(members)
        lines = [
            f"| {group} | " + " | ".join(metric.title for metric in metrics) + " |",
            "|---|" + "---:|" * len(metrics),
        ]
        lines += [
            f"| {row.label} | " + " | ".join(_cell(results, metric, row) for metric in metrics) + " |"
            for row in results.rows
            if any(metric.name in row.values for metric in metrics)
        ]
        notes = (
            [f"- {SHORT_NOTE.replace('*', chr(92) + '*')}"]
            if any(short(metric, row) for metric in metrics for row in results.rows)
            else []
        )
        notes += [f"- *{metric.title}*: {metric.meaning}" for metric in metrics]
        parts.append("\n".join(lines) + "\n\n" + "\n".join(notes))
    return "\n\n".join(parts) + "\n"


def _cell(results: Results, metric: Metric, row: Row) -> str:
    text, around = number(metric, row.mean(metric.name)), spread(metric, row)
    text = f"**{text}**" if row.name in best(results, metric) else text
    text += "\\*" * short(metric, row)
    return f"{text} ({around})" if around else text


def _title(results: Results) -> str:
    seeds = results.about["measure"]["seeds"]
    return f"rooms, {results.about['measure']['name']} evaluation, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
