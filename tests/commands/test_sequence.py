"""Three stages by one command: each from the one before, what is finished not again."""

from __future__ import annotations

import json

import pytest
from command import simclr

from simclr_tf.commands import sequence
from simclr_tf.core.errors import UsageError, UserError

LABELLED = 20


def test_values_for_one_stage_or_all():
    values = ["Data.source='folder:/a'", "pretrain:EPOCHS=2", "distill:EPOCHS=3", "gs://bucket/recipe.gin"]
    assert sequence.for_stage(values, "pretrain") == [values[0], "EPOCHS=2", values[3]]
    assert sequence.for_stage(values, "finetune") == [values[0], values[3]]
    own = ["Pretrain.temperature=0.5", "Supervised.head_layer=0", "a/Memory.decay=0.9", "Sgd.momentum=0.9"]
    assert sequence.params_for_stage(own, "pretrain") == [own[0], own[2], own[3]]
    assert sequence.params_for_stage(own, "finetune") == [own[1], own[3]]
    assert sequence.params_for_stage(own, "distill") == [own[3]]
    with pytest.raises(UsageError, match="'pretrian', but --mode=all has pretrain, finetune, distill"):
        sequence.for_stage(["pretrian:EPOCHS=2"], "pretrain")


def test_commands_run_from_any_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    sequence.run_command("--help")
    assert "--workdir" in capfd.readouterr().out


def test_settings_are_read_before_the_first_stage(tmp_path, capfd):
    with pytest.raises(UserError, match="exit code 1"):  # A process of its own, where nothing else was imported.
        sequence.run_command("--mode=all", f"--workdir={tmp_path}/runs", "--gin_param=distill:Distil.alpha=0.5")
    assert "Distill.alpha" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_three_stages(tmp_path, capfd):
    params = (
        "finetune:Data.label_fraction=None",
        "finetune:Data.labels_per_class=2",
        "distill:ResNet.width=0.125",
    )
    command = ["--mode=all", f"--workdir={tmp_path}/runs"]
    command += [f"--gin_file={stage}:recipes/{stage}/embedded_small" for stage in sequence.STAGES]
    command += ["--gin_file=smoke"]
    command += [f"--gin_param={param}" for param in params]
    done = simclr(*command)
    said, complaints = capfd.readouterr()
    assert done.code == 0, complaints
    results = {stage: json.loads((tmp_path / "runs" / stage / "result.json").read_text()) for stage in sequence.STAGES}
    assert {stage: result["stage"] for stage, result in results.items()} == {
        "pretrain": "pretrain",
        "finetune": "finetune",
        "distill": "distill",
    }
    assert said.count("restored") >= 5  # Fine-tuning took the pretrained encoder, block by block.
    subset = (tmp_path / "runs" / "finetune" / "labelled_subset.txt").read_text().split()
    assert len(subset) == LABELLED
    assert results["distill"]["encoder_parameters"] > results["finetune"]["encoder_parameters"]
    assert [line.split("|")[1].strip() for line in done.out.splitlines() if "%" in line] == list(results)

    (tmp_path / "runs" / "distill" / "result.json").unlink()
    before = {stage: (tmp_path / "runs" / stage / "metrics.jsonl").read_bytes() for stage in sequence.STAGES}
    assert simclr(*command).code == 0
    assert capfd.readouterr().out.count("nothing to do") == 2
    again = json.loads((tmp_path / "runs" / "distill" / "result.json").read_text())
    assert again["last_step"] == results["distill"]["last_step"]
    for stage, records in before.items():
        assert (tmp_path / "runs" / stage / "metrics.jsonl").read_bytes() == records
