"""The studies behind `docs/results.md`: commands that work, figures as the runs said them, a page that is current."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from absl.testing import flagsaver

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import _results_page, results  # noqa: E402
from simclr_tf import cli  # noqa: E402
from simclr_tf.settings import gin_config  # noqa: E402
from simclr_tf.settings.flags import GIN_FILE, GIN_PARAM, MODE, parse_flags  # noqa: E402

TASKS = [task for task in results.tasks(list(results.STUDIES)) if task.seed == 0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.study}: {task.name}")
def test_every_run_is_a_command(task, tmp_path):
    """Its recipe and bindings parse, and it starts from runs that there are."""
    with flagsaver.flagsaver():
        flags = parse_flags(["simclr", *results.command(task, tmp_path, "data")])
        cli._check_usage(flags)
        gin_config.parse(MODE.value, GIN_FILE.value, GIN_PARAM.value)
    assert all(source.seed < source.run.seeds for source in results.sources(task).values())


def test_a_shared_run_is_taken_once():
    shared = [
        run for study in results.STUDIES.values() for run in study.runs.values() if isinstance(run, results.Shared)
    ]
    assert shared
    for study, name in shared:
        origin, original, run = results.resolve(study, name)
        assert results.STUDIES[origin].runs[original] is run and run.mode
    for study in ("head", "distillation"):
        raw = [task.raw for task in results.tasks([study])]
        assert len(raw) == len(set(raw))


def test_folders_of_kept_runs_have_plain_names():
    """A title may hold a slash or a space; its folder does not, and no two runs share one."""
    names = {(task.study, task.name) for task in TASKS}
    assert len({(study, results.folder_name(name)) for study, name in names}) == len(names)
    kept = sorted((ROOT / "results").rglob("*"))
    assert kept
    for path in kept:
        assert re.fullmatch(r"[a-z0-9._-]+", path.name), path
    for path in kept:
        if path.suffix == ".json":
            study, folder = path.relative_to(ROOT / "results").parts[:2]
            title = json.loads(path.read_text())["run"]
            assert title in results.STUDIES[study].runs and results.folder_name(title) == folder


def test_hidden_runs_are_runs():
    for study in results.STUDIES.values():
        assert set(study.hidden) < set(study.runs)


def test_confidence_interval():
    """Three seeds: t(2, 97.5 %) = 4.3027 (any table of Student's t)."""
    values = [0.348, 0.376, 0.378]
    found = _results_page.estimate(values)
    assert found.mean == pytest.approx(36.7333, abs=1e-3)
    assert found.half == pytest.approx(4.3027 * 100 * np.std(values, ddof=1) / np.sqrt(3), rel=1e-4)
    assert str(found) == "36.7 ± 4.2" and str(_results_page.estimate([0.5])) == "50.0"


def test_a_kept_run_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RAW", tmp_path)
    monkeypatch.setattr(_results_page, "IMAGES", tmp_path)
    study = results.STUDIES["memory"]
    run = next(iter(study.runs))
    for seed, top_1 in enumerate((0.31, 0.33)):
        result = {"stage": "pretrain", "encoder_parameters": 176_000, "seconds": 30, "evaluation": {"top_1": top_1}}
        kept = {"result": result, "knn": {"top_1": 0.4}, "machine": "a machine, load 0.0 at the start"}
        path = results.Task("memory", run, study.runs[run], seed).raw
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept))
    text = _results_page.section("memory", study, results.figures("memory", study))
    assert "32.0 ± 12.7" in text and "40.0 ± 0.0" in text and "0.18M" in text
    assert "Still to be taken: 10 of 12 runs" in text
    picture = ElementTree.parse(tmp_path / "results_memory.svg")
    assert len(picture.findall(".//{*}circle")) == 1


def test_the_page_is_current():
    """What is kept in `results/` is what `docs/results.md` shows."""
    text = _results_page.PAGE.read_text()
    for name, study in results.STUDIES.items():
        kept = results.figures(name, study)
        if any(kept[run] for run in _results_page.own_runs(study)):
            assert _results_page.table(study, kept) in text, "run: python benchmarks/results.py --write"
