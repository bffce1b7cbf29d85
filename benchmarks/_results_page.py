"""`docs/results.md` and its plots, from what `benchmarks/results.py` keeps: means, confidence intervals, SVG."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import _common
from benchmarks._studies import STUDIES, Run, Study

PAGE = _common.ROOT / "docs" / "results.md"
IMAGES = _common.ROOT / "docs" / "images"
# Two-sided 95 % quantiles of Student's t by degrees of freedom; a study has a few seeds.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


class Estimate(NamedTuple):
    """A mean over seeds, in per cent; `half` is half of its 95 % confidence interval, None for one seed."""

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        """As a cell of a table."""
        return f"{self.mean:.1f}" + (f" ± {self.half:.1f}" if self.half is not None else "")


def estimate(values: Sequence[float]) -> Estimate:
    """Takes accuracies in [0, 1], one for each seed."""
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return Estimate(percent[0], None, 1)
    half = _T[len(percent) - 1] * statistics.stdev(percent) / math.sqrt(len(percent))
    return Estimate(statistics.mean(percent), half, len(percent))


def measures(kept: list[dict]) -> dict[str, Estimate]:
    """What the seeds of a run say: name of the measure -> estimate."""
    found = {}
    if all("evaluation" in row["result"] for row in kept):
        stage = kept[0]["result"]["stage"]
        name = "linear probe, %" if stage == "pretrain" else "top-1, %"
        found[name] = estimate([row["result"]["evaluation"]["top_1"] for row in kept])
    if all("knn" in row for row in kept):
        found["k-NN, %"] = estimate([row["knn"]["top_1"] for row in kept])
    return found


def table(study: Study, kept: dict[str, list[dict]]) -> str:
    """Returns a study's runs as Markdown."""
    shown = {name: measures(rows) for name, rows in kept.items() if rows and name not in study.hidden}
    columns = list(dict.fromkeys(measure for found in shown.values() for measure in found))
    lines = []
    for name, found in shown.items():
        rows = kept[name]
        size = rows[0]["result"]["encoder_parameters"]
        seconds = statistics.median(row["result"]["seconds"] for row in rows)
        cells = [str(found.get(column, "")) for column in columns]
        lines.append((name, len(rows), f"{size / 1e6:.2f}M", *cells, f"{seconds:.0f}"))
    return _common.table(("run", "seeds", "encoder", *columns, "seconds"), lines)


def plot(title: str, rows: dict[str, Estimate]) -> str:
    """Draws means with their confidence intervals as an SVG picture, one row each."""
    left, width, step, top = 260, 620, 26, 36
    low = min(e.mean - (e.half or 0) for e in rows.values())
    high = max(e.mean + (e.half or 0) for e in rows.values())
    low, high = 5 * math.floor(max(0, low) / 5), 5 * math.ceil(min(100, high + 0.1) / 5)
    height = top + step * len(rows) + 30

    def x(value: float) -> float:
        return left + (width - left - 20) * (min(max(value, low), high) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="20" font-weight="bold">{html.escape(title)}</text>',
    ]
    ticks = range(int(low), int(high) + 1, 5 if high - low <= 40 else 10)
    for tick in ticks:
        parts.append(f'<path d="M{x(tick):.1f} {top - 6}V{height - 24}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle" fill="#555">{tick} %</text>')
    for i, (name, found) in enumerate(rows.items()):
        y = top + step * i + step / 2
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>')
        if found.half is not None:
            start, end = x(found.mean - found.half), x(found.mean + found.half)
            parts.append(f'<path d="M{start:.1f} {y}H{end:.1f}" stroke="#1f77b4" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(found.mean):.1f}" cy="{y}" r="4" fill="#1f77b4"/>')
    return "\n".join([*parts, "</svg>\n"])


def own_runs(study: Study) -> dict[str, Run]:
    """What a study shows of its own; without any of it there is nothing to compare."""
    return {name: run for name, run in study.runs.items() if name not in study.hidden and isinstance(run, Run)}


def recipes(study: Study) -> str:
    """Returns links to a study's recipes."""
    names = dict.fromkeys(run.recipe for run in study.runs.values() if isinstance(run, Run))
    return ", ".join(f"[{name.partition('/')[2]}](../gin/{name}.gin)" for name in names)


def section(name: str, study: Study, kept: dict[str, list[dict]]) -> str:
    """Returns a study's section; draws its plot."""
    lines = [
        f"## {study.title}",
        "",
        *((f"*The paper:* {study.claim}", "") if study.claim else ()),
        study.note,
        "",
        f"`python benchmarks/results.py --data_dir=... --studies={name}`; recipes: {recipes(study)}; each run's "
        f"command and figures: [results/{name}](../results/{name}).",
        "",
    ]
    shown = {run: rows for run, rows in kept.items() if run not in study.hidden}
    own = own_runs(study)
    if not any(shown[name] for name in own):
        return "\n".join([*lines, "Not measured yet."])
    first = {run: next(iter(measures(rows).items())) for run, rows in shown.items() if rows}
    picture = IMAGES / f"results_{name}.svg"
    IMAGES.mkdir(exist_ok=True)
    measured = {measure for measure, _ in first.values()}
    title = measured.pop() if len(measured) == 1 else "top-1, %"
    picture.write_text(plot(title, {run: found for run, (_, found) in first.items()}))
    lines += [f"![{html.escape(study.claim or study.title)}](images/{picture.name})", "", table(study, kept), ""]
    if study.found:
        lines += [study.found, ""]
    missing = sum(max(0, run.seeds - len(shown[name])) for name, run in own.items())
    if missing:
        lines += [f"Still to be taken: {missing} of {sum(run.seeds for run in own.values())} runs.", ""]
    machines = sorted({row["machine"].split(", load")[0] for rows in kept.values() for row in rows})
    return "\n".join([*lines, f"Measured here: {'; '.join(machines)}."])


def write(kept: dict[str, dict[str, list[dict]]]) -> None:
    """Writes the page around what stands before its first mark.

    Args:
      kept: study -> run -> what each seed said.
    """
    begin = "<!-- from here on written by benchmarks/results.py -->"
    before = PAGE.read_text().split(begin)[0].rstrip()
    sections = [section(name, STUDIES[name], rows) for name, rows in kept.items()]
    unfinished = PAGE.with_suffix(".tmp")
    unfinished.write_text("\n\n".join([before, begin, *sections]) + "\n")
    unfinished.replace(PAGE)
