"""Calibration: temperatures with the smallest loss, stored next to an adapter, and used by every prediction."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score

from minipeft import MinipeftError, load_run
from minipeft.cli.cli import main
from minipeft.problems.multi_label import MultiLabel
from minipeft.problems.regression import Regression
from minipeft.problems.single_label import SingleLabel
from minipeft.problems.token_labels import TokenLabels


def best_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Of one column of binary logits, or of a table of them, by scipy."""

    def loss(log_temperature: float) -> float:
        scaled = logits.double() / np.exp(log_temperature)
        if targets.dtype == torch.int64:
            return F.cross_entropy(scaled, targets).item()
        return F.binary_cross_entropy_with_logits(scaled, targets.double()).item()

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x))


@pytest.mark.parametrize("scale", [0.2, 1.0, 9.0])
def test_temperatures_have_the_smallest_loss(scale: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(300, 3)
    targets = torch.multinomial(logits.softmax(1), 1)[:, 0]
    problem = SingleLabel(("a", "b", "c"))
    fitted = problem.calibrate(scale * logits, targets.tolist())
    assert fitted.temperatures == pytest.approx((best_temperature(scale * logits, targets),), rel=1e-4)
    expected = ((scale * logits).double() / fitted.temperatures[0]).softmax(1)
    np.testing.assert_allclose(fitted.probabilities(scale * logits), expected)
    np.testing.assert_array_equal(fitted.decide(logits), problem.decide(logits))

    chosen = torch.rand(300, 3) < logits.sigmoid()
    sets = [tuple(row.nonzero()[:, 0].tolist()) for row in chosen]
    several = MultiLabel(("a", "b", "c")).calibrate(scale * logits, sets)
    columns = [best_temperature(scale * logits[:, n], chosen[:, n]) for n in range(3)]
    assert several.temperatures == pytest.approx(columns, rel=1e-3)


def test_separable_logits_and_numbers() -> None:
    problem = SingleLabel(("a", "b")).calibrate(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [0, 1])
    assert 0.01 <= problem.temperatures[0] < 1
    with pytest.raises(MinipeftError, match="--calibrate: the labels are numbers"):
        Regression().calibrate(torch.zeros(3, 1), [1.0, 2.0, 3.0])


def test_a_calibrated_run_predicts_with_its_temperature(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(small_runs["sst2"], tmp_path / "run")
    plain = load_run(run)
    assert main(["evaluate", str(run), "--calibrate", "--json"]) == 0
    printed = capsys.readouterr()
    content = json.loads((run / "adapter" / "calibration.json").read_text())
    assert "expected calibration error before " in printed.err and set(json.loads(printed.out)) >= {"accuracy"}
    temperature = content["temperatures"][0]
    with caplog.at_level(logging.WARNING):
        calibrated, adapter = load_run(run), load_run(run / "adapter")
    assert f"the probabilities are calibrated with temperature {temperature:.4g}" in caplog.text
    expected = (plain.predict_logits(["a film"]).double() / temperature).softmax(1)
    for loaded in (calibrated, adapter):
        np.testing.assert_allclose(loaded.predict_proba(["a film"]), expected, atol=1e-6)
        np.testing.assert_allclose(
            list(loaded.predict(["a film"])[0]["probabilities"].values()), expected[0], atol=2e-6
        )
    (run / "adapter" / "calibration.json").write_text(json.dumps({"format": 1, "temperatures": [1.0, 2.0, 3.0]}))
    assert main(["predict", str(run), "--text", "a"]) == 2
    assert "are not one number for each label" in capsys.readouterr().err


def test_the_threshold_of_two_classes_has_the_best_metric() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 2), (torch.rand(200) < 0.2).long().tolist()
    problem = SingleLabel(("no", "yes"))
    scores = problem.probabilities(logits)[:, 1]
    for metric, reference in (("macro_f1", {"average": "macro"}), ("f1:yes", {"pos_label": 1})):
        chosen, by = problem.choose_thresholds(logits, targets, ["auroc", metric])
        tried = [f1_score(targets, scores >= one, zero_division=0, **reference) for one in np.unique(scores)]
        found = f1_score(targets, scores >= chosen.thresholds[0], **reference)
        assert by == metric and found == pytest.approx(max(tried)) and chosen.decide(logits).sum() > 0
    calibrated = chosen.calibrate(logits, targets)
    np.testing.assert_array_equal(calibrated.decide(logits), chosen.decide(logits))
    for other in (SingleLabel(("a", "b", "c")), Regression(), TokenLabels(("O", "B-x"))):
        with pytest.raises(MinipeftError, match="--threshold: it is for two classes"):
            other.with_thresholds(0.3)


def test_a_run_predicts_with_the_threshold_that_is_stored_or_given(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, texts = shutil.copytree(small_runs["sst2"], tmp_path / "run"), ["a film", "not good", "dull"]
    positive = load_run(run).predict_proba(texts)[:, 1]
    assert main(["predict", str(run), "--text", "a", "--threshold", "auto"]) == 2
    assert "no threshold is stored" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--threshold", "auto", "--calibrate", "--json"]) == 0
    printed = capsys.readouterr()
    content = json.loads((run / "adapter" / "calibration.json").read_text())
    assert content["after"] == json.loads(printed.out)["accuracy"] >= content["before"]
    assert f"threshold positive {content['thresholds'][0]:.4g}; accuracy before" in printed.err
    assert load_run(run, threshold="auto").task.problem.thresholds == tuple(content["thresholds"])
    middle = float(np.sort(load_run(run).predict_proba(texts)[:, 1])[1])
    predicted = load_run(run, threshold=middle).predict(texts)
    assert [row["label"] == "positive" for row in predicted] == (positive >= np.sort(positive)[1]).tolist()
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    flags = ["--input", str(tmp_path / "in.jsonl"), "--threshold", str(middle), "--output", str(tmp_path / "out.jsonl")]
    assert main(["predict", str(run), *flags]) == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == predicted


def test_temperatures_and_thresholds_of_two_commands_stand_side_by_side(
    small_runs: dict[str, Path], tmp_path: Path
) -> None:
    chosen = []
    for number, commands in enumerate(
        ((("--threshold", "auto"), ("--calibrate",)), (("--calibrate", "--threshold", "auto"),))
    ):
        run = shutil.copytree(small_runs["sst2"], tmp_path / str(number))
        for flags in commands:
            assert main(["evaluate", str(run), "--json", *flags]) == 0
        stored = json.loads((run / "adapter" / "calibration.json").read_text())
        assert json.loads((run / "result.json").read_text())["calibration"] == stored
        chosen.append(load_run(run).task.problem)
        assert {"error_before", "error_after", "chosen_by", "before", "after"} <= set(stored)
    logits = load_run(tmp_path / "0").predict_logits(["a film", "not good", "dull"])
    np.testing.assert_array_equal(chosen[0].decide(logits), chosen[1].decide(logits))
