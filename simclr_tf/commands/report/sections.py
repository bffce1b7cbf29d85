"""Writes the sections of a report, in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simclr_tf.analysis import contact_sheet, metrics
from simclr_tf.analysis.features import Seen, choose_queries, nearest
from simclr_tf.commands.report import charts, saved_settings
from simclr_tf.commands.report.charts import Level, Series
from simclr_tf.commands.report.page import bar, figure, picture, table, text
from simclr_tf.commands.report.runs import Run
from simclr_tf.core.text import duration, magnitude
from simclr_tf.data.sources.overlap import Overlap
from simclr_tf.models.cost import count_parameters, flops_per_image
from simclr_tf.models.network import Network

_MANY_CLASSES = 30
_MANY_MISTAKES = 10


class Curve(NamedTuple):
    """A chart of one metric: its key, its title, whether in percent, and whether from `throughput.jsonl`."""

    metric: str
    title: str
    percent: bool = False
    throughput: bool = False


_CURVES = (
    Curve("loss", "Loss"),
    Curve("contrastive", "Contrastive loss"),
    Curve("cross_entropy", "Cross-entropy"),
    Curve("distillation", "Distillation loss"),
    Curve("teacher_divergence", "Divergence from the teacher, nats"),
    Curve("contrastive_accuracy", "Contrastive accuracy", True),
    Curve("probe_accuracy", "Linear probe while training", True),
    Curve("accuracy", "Accuracy on training batches", True),
    Curve("teacher_agreement", "Agreement with the teacher", True),
    Curve("contrastive_entropy", "Contrastive entropy"),
    Curve("alignment", "Alignment"),
    Curve("uniformity", "Uniformity"),
    Curve("learning_rate", "Learning rate"),
    Curve("images_per_second", "Images per second", throughput=True),
    Curve("waiting_for_data", "Waiting for data, share of the time", True, throughput=True),
    Curve("bad_images", "Unreadable images", throughput=True),
)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"


def status(run: Run) -> str:
    """Describes the progress of a run."""
    if run.result is not None:
        return f"finished after {run.result.get('steps', run.steps)} steps"
    if run.description.get("stage") == "convert":
        return f"converted from {run.description.get('source')}"
    if run.seconds_since_record is None:
        return "started; nothing recorded yet"
    of = f" of {run.planned_steps}" if run.planned_steps else ""
    return f"not finished: {run.steps}{of} steps recorded, the last {duration(run.seconds_since_record)} ago"


def top_1(run: Run) -> float | None:
    """Returns a run's accuracy on the evaluation split, in [0, 1]: from `--mode=eval`, else from the end of the run."""
    for found in (run.evaluation, (run.result or {}).get("evaluation")):
        if found and found.get("top_1") is not None:
            return float(found["top_1"])
    return None


def overlaps(run: Run) -> list[str]:
    """Returns a note for each figure that was measured on training images."""
    whose = {
        "at the run's end": (run.result or {}).get("evaluation"),
        "of --mode=eval": run.evaluation,
        "of --mode=knn": run.knn,
    }
    notes = []
    for when, found in whose.items():
        for key, who in (("overlap", "This run"), ("overlap_of_start", "What this run starts from or imitates")):
            if shared := (found or {}).get(key):
                notes.append(f"{who} was trained on {Overlap(**shared).words}: top-1 {when} is too good.")
    return notes


def overview(runs: Sequence[Run], networks: dict[str, Network]) -> str:
    """Returns a table with a row for each run: progress, accuracy, size and speed."""
    header = ("run", "stage", "data", "status", "top-1", "kNN", "encoder", "FLOP/image", "images/s", "time")
    rows = []
    for i, run in enumerate(runs):
        network, result = networks.get(run.name), run.result or {}
        rows.append(
            (
                f'<a href="#run{i}">{text(run.name)}</a>',
                text(run.description.get("stage", "?")),
                text(run.description.get("data", {}).get("source", "?")),
                text(status(run)),
                _percent(top_1(run)),
                _percent((run.knn or {}).get("top_1")),
                magnitude(count_parameters(network.encoder)) if network else "–",
                magnitude(flops_per_image(network)) if network else "–",
                charts.number(result["images_per_second"]) if "images_per_second" in result else _speed(run),
                duration(result["seconds"]) if "seconds" in result else "–",
            )
        )
    return table(header, rows, numbers=range(4, 10))


def _speed(run: Run) -> str:
    """Returns the median speed of a run that is still going."""
    values = run.throughput.get("images_per_second", (None, np.zeros(0)))[1]
    return charts.number(float(np.nanmedian(values))) if np.isfinite(values).any() else "–"


def curves(runs: Sequence[Run]) -> str:
    """Returns a chart for each curve that any run has, with the runs side by side."""
    cards = []
    for curve in _CURVES:
        series: list[Series] = []
        chance: dict[tuple[str, float], list[int]] = {}
        for color, run in enumerate(runs):
            found = (run.throughput if curve.throughput else run.metrics).get(curve.metric)
            if found is None or not np.isfinite(found[1]).any():
                continue
            if curve.metric != "loss" and not curve.throughput and _is_whole_loss(run, curve.metric):
                continue
            series.append(Series(run.name, *found, color=color))
            if (line := _chance(run, curve.metric)) is not None:
                chance.setdefault(line, []).append(color)
        if not series:
            continue
        levels = [_level(name, y, colors, runs) for (name, y), colors in chance.items()]
        last = ", ".join(_last(one, curve.percent, named=len(series) > 1) for one in series)
        chart = charts.lines(series, label=f"{curve.title}: last {last}", levels=levels, percent=curve.percent)
        cards.append(figure(curve.title, chart, f"last: {text(last)}"))
    if not cards:
        return "<p>No step has been recorded yet.</p>"
    names = charts.legend([run.name for run in runs]) if len(runs) > 1 else ""
    note = (
        '<p class="faint">The x axis shows steps, from 0. Where there are too many points, the line is their mean, and '
        "the band spans the least to the greatest.</p>"
    )
    return f'{names}{note}<div class="cards">{"".join(cards)}</div>'


def _is_whole_loss(run: Run, part: str) -> bool:
    """Returns whether a part of the loss is the whole loss, which would be drawn twice."""
    whole, found = run.metrics.get("loss"), run.metrics[part]
    return whole is not None and len(whole[1]) == len(found[1]) and np.allclose(whole[1], found[1], equal_nan=True)


def _last(one: Series, percent: bool, *, named: bool) -> str:
    value = one.y[np.isfinite(one.y)][-1]
    return f"{100 * value:.1f}%" * percent + charts.number(value) * (not percent) + f" ({one.name})" * named


def _chance(run: Run, metric: str) -> tuple[str, float] | None:
    """Returns the chance level of a metric, in words and as a number; None if it has none."""
    classes = len(run.description.get("class_names") or ())
    contrastive = "contrastive" if "probe" in run.metrics else "loss"
    if metric == contrastive and (chance := run.last("chance_loss")) is not None:
        return f"chance {chance:.2f}", chance
    if metric in ("probe_accuracy", "accuracy") and classes:
        return f"chance {100 / classes:.3g}%", 1 / classes
    return None


def _level(name: str, y: float, colors: Sequence[int], runs: Sequence[Run]) -> Level:
    """Returns the line of a chance level: gray if several runs share it, else with the color and name of its run."""
    if len(colors) > 1 or len(runs) == 1:
        return Level(name, y)
    return Level(f"{name} ({runs[colors[0]].name})", y, colors[0])


def neighbors(seen: Seen, class_names: Sequence[str], *, num_images: int, num_neighbors: int) -> str:
    """Returns sample images with the images that the encoder finds most like them."""
    if len(seen.features) < 2:
        return ""
    queries = choose_queries(seen.labels, num_images)
    found, similarity = nearest(seen.features, queries, num_neighbors)

    def name(i: int) -> str:
        return class_names[seen.labels[i]] if class_names and seen.labels[i] >= 0 else seen.names[i].rsplit("/", 1)[-1]

    def cell(i: int, kind: str, below: str) -> str:
        image = picture(contact_sheet.png(seen.thumbnails[i]), name(i))
        return f'<span class="{kind}" title="{text(seen.names[i])}">{image}<br>{below}</span>'

    lines = []
    for query, row, values in zip(queries, found, similarity):
        cells = [cell(query, "query", text(name(query)))]
        for i, value in zip(row, values):
            known = seen.labels[query] >= 0 and seen.labels[i] >= 0
            kind = ("same" if seen.labels[query] == seen.labels[i] else "other") if known else ""
            cells.append(cell(i, kind, f"{text(name(i))} {value:.2f}"))
        lines.append(f"<div>{''.join(cells)}</div>")
    legend = " Green frames: the same class; red frames: another class." if any(seen.labels >= 0) else ""
    among = f"its nearest neighbors among {len(seen.features)} images"
    caption = f"Left: an image; right: {among}, with their cosine similarity.{legend}"
    return figure("Nearest neighbors", f'<div class="neighbors">{"".join(lines)}</div>', caption, whole_row=True)


def embedding_map(points: np.ndarray, how: str, seen: Seen, class_names: Sequence[str]) -> str:
    """Returns the map of the embedding, colored by class if there are labels."""
    titles = [
        f"{class_names[label]}: {name}" if class_names and label >= 0 else name
        for name, label in zip(seen.names, seen.labels)
    ]
    chart = charts.scatter(points, [int(label) for label in seen.labels], titles, label=f"Map of {len(points)} images")
    legend = ""
    if any(seen.labels >= 0):
        many = len(class_names) > _MANY_CLASSES
        legend = "<p>Point at a mark to see its class.</p>" if many else charts.legend(class_names, shapes=True)
    return figure(f"Map of {len(points)} images", chart + legend, text(how))


def classification(seen: Seen | None, run: Run, class_names: Sequence[str]) -> str:
    """Returns confusion matrix, calibration and classes: from `--mode=eval`, else measured on the sample."""
    found, whose = _measured(seen, run, class_names)
    if found is None:
        return ""
    parts = []
    if "confusion_matrix" in found:
        matrix = np.array(found["confusion_matrix"])
        parts.append(
            figure(
                "Confusion matrix",
                charts.confusion(matrix, class_names, label="Confusion matrix"),
                f"Rows: the true class. {whose}",
            )
            if len(matrix) <= 100
            else ""
        )
        parts.append(_mistakes(matrix, class_names))
    if "calibration" in found:
        error = found["calibration"]["expected_calibration_error"]
        chart = charts.reliability(found["calibration"]["bins"], label=f"Calibration error {100 * error:.1f}%")
        caption = f"Expected calibration error {100 * error:.2f}%. Points below the diagonal: overconfident. {whose}"
        parts.append(figure("Calibration", chart, caption))
    parts.append(_classes(found, whose))
    return f'<div class="cards">{"".join(parts)}</div>'


def _measured(seen: Seen | None, run: Run, class_names: Sequence[str]) -> tuple[dict | None, str]:
    """Returns the best available measurements, and a sentence about the images they were taken on."""
    report = run.evaluation
    if report and report.get("checkpoint") == run.checkpoint and "confusion_matrix" in report:
        return report, f"All {report['examples']} images of {text(report.get('data', 'the evaluation split'))}."
    if seen is not None and seen.logits is not None and any(seen.labels >= 0):
        measured = {
            **metrics.classification(seen.labels, seen.logits, list(class_names)),
            "calibration": metrics.calibration(seen.labels, seen.logits),
            "confusion_matrix": metrics.confusion_matrix(seen.labels, seen.logits),
        }
        note = f"Measured here on a sample of {measured['examples']} images; --mode=eval measures all of them."
        return measured, note
    report = (run.result or {}).get("evaluation")
    return (report, f"All {report['examples']} images.") if report and report.get("per_class") else (None, "")


def _mistakes(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    worst = [i for i in np.argsort(-wrong, axis=None, kind="stable")[:_MANY_MISTAKES] if wrong.flat[i]]
    if not worst:
        return figure("Most frequent mistakes", "<p>None.</p>")
    rows = [
        (text(class_names[i // len(matrix)]), text(class_names[i % len(matrix)]), str(int(wrong.flat[i])))
        for i in worst
    ]
    return figure("Most frequent mistakes", table(("true class", "taken for", "images"), rows, numbers=(2,)))


def _classes(found: dict, whose: str) -> str:
    counts = found.get("per_class_examples", {})
    rows = [
        (
            text(name),
            str(counts.get(name, "–")),
            "no images" if value is None else f"{100 * value:.1f}%",
            "" if value is None else bar(value),
        )
        for name, value in sorted(found["per_class"].items(), key=lambda row: (row[1] is None, row[1]))
    ]

    def part(some: Sequence[tuple[str, ...]]) -> str:
        return table(("class", "images", "accuracy", ""), some, numbers=(1, 2))

    inside = part(rows[:_MANY_CLASSES])
    if len(rows) > _MANY_CLASSES:
        summary_of_rest = f"<summary>the other {len(rows) - _MANY_CLASSES} classes</summary>"
        inside += f"<details>{summary_of_rest}{part(rows[_MANY_CLASSES:])}</details>"
    return figure("Classes, worst first", inside, f"{text(metrics.told(found))}. {whose}")


def cost(run: Run, network: Network) -> str:
    """Returns the parameters and FLOPs of the network and the cost of its training."""
    rows = [
        (text(name), f"{count_parameters(part):,}", magnitude(count_parameters(part)))
        for name, part in network.parts().items()
    ]
    inside = table(("part", "parameters", ""), rows, numbers=(1, 2))
    flops = flops_per_image(network)
    lines = [f"Encoder, forward, one image of {network.image_size} pixels: {magnitude(flops)}FLOP."]
    result = run.result or {}
    if "seconds" in result:
        lines.append(
            f"Trained for {duration(result['seconds'])} on {result.get('replicas', 1)} replica(s) in "
            f"{result.get('precision', '?')}: {charts.number(result.get('images_per_second', 0))} images/s."
        )
    versions = result.get("versions", {})
    if versions:
        lines.append("With " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return figure("Parameters and cost", inside + "".join(f"<p>{text(line)}</p>" for line in lines))


def configuration(runs: Sequence[Run]) -> str:
    """Returns all settings, first those that differ between runs."""
    read = [run.settings for run in runs]
    if not any(read):
        return "<p>No configuration was saved.</p>"
    differs = saved_settings.differing(read) if len(runs) > 1 else []
    same = [name for name in sorted({name for one in read for name in one}) if name not in differs]

    def code(one: dict[str, str], name: str) -> str:
        return f"<code>{text(one[name])}</code>" if name in one else "–"

    parts = []
    if len(runs) > 1:
        rows = [(f"<code>{text(name)}</code>", *(code(one, name) for one in read)) for name in differs]
        parts.append("<h3>Different settings</h3>")
        parts.append(table(("setting", *(run.name for run in runs)), rows) if rows else "<p>Nothing.</p>")
    whose = "in common" if len(runs) > 1 else "all, defaults included"
    rows = [(f"<code>{text(name)}</code>", code(read[0], name)) for name in same]
    parts.append(
        f"<details><summary>{len(same)} settings, {whose}</summary>{table(('setting', 'value'), rows)}</details>"
    )
    return "".join(parts)
