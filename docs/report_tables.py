"""The tables of docs/report.md and of docs/ablations.md, in English and in Traditional Chinese."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
TASKS = {"rte": "RTE", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "wnut17": "WNUT-17", "ewt": "EWT"}
REPORTED = {"rte LoRA": "0.726", "rte BitFit": "0.740", "sst2 LoRA": "0.923", "sst2 BitFit": "0.892"}  # the report's
SEEDS = 3
WORDS = {
    "en": {
        "training": "training",
        "lr": "learning rate",
        "rows": "rows",
        "epochs": "epochs",
        "parameters": "parameters",
        "best": "best / last accuracy",
        "seeds": "seeds",
        "train": "training loss, last",
        "eval": "validation loss, last",
        "lowest": "validation loss, lowest",
        "reported": "the report, roberta-base",
        "all": "all",
        "model": "model",
        "rank": "rank",
        "seconds": "seconds",
        "accuracy": "accuracy, last",
        "not run": "not run",
        "default": "minipeft's rate",
        "report": "the report's rate",
        "measured": "Run on {machine}; {date}; other work shared the cores, as the seconds show.",
        "verdict": "Rank {high} compared with rank {low}, difference of the means over {seeds} seeds with its "
        "standard error: training loss {train}; validation loss {eval}; accuracy {accuracy}.",
        "train down": "The training loss falls with the rank, so the lowest rank fits less.",
        "train same": "The training loss does not differ by two standard errors: no underfitting of low ranks shows.",
        "train up": "The training loss rises with the rank: the opposite of underfitting at low ranks.",
        "eval up": "The validation loss rises with the rank, as overfitting would have it.",
        "eval same": "The validation loss does not differ by two standard errors: no overfitting of high ranks shows.",
        "eval down": "The validation loss falls with the rank: the opposite of overfitting at high ranks.",
        "too few": "Fewer than two seeds of the lowest and the highest rank have been run: no conclusion.",
    },
    "zh": {
        "training": "訓練",
        "lr": "學習率",
        "rows": "資料筆數",
        "epochs": "epoch 數",
        "parameters": "參數量",
        "best": "最佳 / 最後的準確率",
        "seeds": "隨機種子",
        "train": "最後的訓練損失",
        "eval": "最後的驗證損失",
        "lowest": "最低的驗證損失",
        "reported": "報告，roberta-base",
        "all": "全部",
        "model": "模型",
        "rank": "秩",
        "seconds": "秒",
        "accuracy": "最後的準確率",
        "not run": "未執行",
        "default": "minipeft 的學習率",
        "report": "報告的學習率",
        "measured": "執行環境：{machine}；{date}；核心同時有其他工作，秒數也受其影響。",
        "verdict": "秩 {high} 與秩 {low} 相比，{seeds} 個種子平均值的差及其標準誤："
        "訓練損失 {train}；驗證損失 {eval}；準確率 {accuracy}。",
        "train down": "訓練損失隨秩增加而下降，因此最低的秩擬合得較差。",
        "train same": "兩者的訓練損失相差不到兩個標準誤：看不出低秩有欠擬合。",
        "train up": "訓練損失隨秩增加而上升：與低秩欠擬合相反。",
        "eval up": "驗證損失隨秩增加而上升，與過擬合相符。",
        "eval same": "驗證損失相差不到兩個標準誤：看不出高秩有過擬合。",
        "eval down": "驗證損失隨秩增加而下降：與高秩過擬合相反。",
        "too few": "最低與最高的秩執行過的種子少於兩個：無法下結論。",
    },
}
Rows = list[dict[str, Any]]


def entries(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def markdown(columns: list[str], right: list[bool], rows: list[list[str]]) -> str:
    lines = [columns, ["---:" if at_right else "---" for at_right in right], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def value_of(flags: str, name: str) -> str | None:
    """Return the value of a flag of train.py."""
    words = flags.split()
    return words[words.index(name) + 1] if name in words else None


def grouped(rows: Rows, part: str, *names: str) -> dict[tuple[Any, ...], Rows]:
    """Return the rows of a part by the fields `names`; those of one group differ in the seed."""
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def joined(rows: Rows, write: Callable[[dict[str, Any]], str]) -> str:
    return ", ".join(write(row) for row in rows)


def report(language: str) -> str:
    """The four trainings, and SST-2 at minipeft's own learning rate."""
    words, text = WORDS[language], ""
    for machine, entry in entries("report").items():
        lines = []
        for part in ("report", "default rate"):
            for (name, model, flags), rows in grouped(entry["rows"], part, "name", "model", "flags").items():
                task, method = name.split()
                limit = value_of(flags, "--train-limit")
                lines.append(
                    [
                        f"{TASKS[task]} {method}, {words['report' if part == 'report' else 'default']}",
                        model,
                        value_of(flags, "--lr") or "",
                        f"{int(limit):,}" if limit else words["all"],
                        value_of(flags, "--epochs") or "",
                        f"{rows[0]['parameters']['method']:,}",
                        joined(rows, lambda row: f"{row['best']['value']:.3f} / {row['last']['value']:.3f}"),
                        joined(rows, lambda row: str(row["seed"])),
                        joined(rows, lambda row: f"{row['epochs'][-1]['train_loss']:.3f}"),
                        joined(rows, lambda row: f"{row['epochs'][-1]['eval_loss']:.3f}"),
                        REPORTED[name] if part == "report" else "",
                    ]
                )
        names = (
            "training",
            "model",
            "lr",
            "rows",
            "epochs",
            "parameters",
            "best",
            "seeds",
            "train",
            "eval",
            "reported",
        )
        columns = [words[name] for name in names]
        text += markdown(columns, [False, False, *[True] * 9], lines)
        text += "\n" + words["measured"].format(machine=machine, date=dates(entry["rows"])) + "\n"
    return text or words["not run"] + "\n"


def dates(rows: Rows) -> str:
    return ", ".join(sorted({row["date"] for row in rows}))


def commands(language: str) -> str:
    """The commands of benchmarks/report.py that made the rows."""
    found = [row["command"] for entry in entries("report").values() for row in entry["rows"]]
    return "```bash\n" + "\n".join(dict.fromkeys(found)) + "\n```\n" if found else WORDS[language]["not run"] + "\n"


def report_ranks(language: str) -> str:
    """What the rank does to parameters, time and loss; each value is the mean of the seeds."""
    words, text = WORDS[language], ""
    for entry in entries("report").values():
        lines = []
        for (name, _, _), rows in sorted(
            grouped(entry["rows"], "rank", "name", "model", "flags").items(), key=lambda item: int(item[0][0])
        ):
            last = [row["epochs"][-1] for row in rows]
            lowest = [min(epoch["eval_loss"] for epoch in row["epochs"]) for row in rows]
            lines.append(
                [
                    name,
                    f"{rows[0]['parameters']['method']:,}",
                    f"{statistics.mean(row['train_seconds'] for row in rows):.0f}",
                    *(f"{statistics.mean(epoch[what] for epoch in last):.3f}" for what in ("train_loss", "eval_loss")),
                    f"{statistics.mean(lowest):.3f}",
                    f"{statistics.mean(epoch['accuracy'] for epoch in last):.3f}",
                    joined(rows, lambda row: str(row["seed"])),
                ]
            )
        names = ("rank", "parameters", "seconds", "train", "eval", "lowest", "accuracy", "seeds")
        text += markdown([words[name] for name in names], [True] * 7 + [False], lines) if lines else ""
    return text or words["not run"] + "\n"


def report_verdict(language: str) -> str:
    """Whether the losses of the lowest and of the highest rank differ by two standard errors."""
    words = WORDS[language]
    rows = [row for entry in entries("report").values() for row in entry["rows"]]
    ranks = {int(name): found for (name,), found in grouped(rows, "rank", "name").items() if len(found) > 1}
    if len(ranks) < 2:
        return words["too few"] + "\n"
    low, high = min(ranks), max(ranks)
    differences = {what: difference(ranks[low], ranks[high], what) for what in ("train_loss", "eval_loss", "accuracy")}
    shown = {what: f"{value:+.3f} ± {error:.3f}" for what, (value, error) in differences.items()}
    sentences = [
        words["verdict"].format(
            high=high,
            low=low,
            seeds=min(len(ranks[low]), len(ranks[high])),
            train=shown["train_loss"],
            eval=shown["eval_loss"],
            accuracy=shown["accuracy"],
        )
    ]
    for short, what in (("train", "train_loss"), ("eval", "eval_loss")):
        value, error = differences[what]
        direction = "same" if abs(value) < 2 * error else ("up" if value > 0 else "down")
        sentences.append(words[f"{short} {direction}"])
    return (" " if language == "en" else "").join(sentences) + "\n"


def difference(low: Rows, high: Rows, what: str) -> tuple[float, float]:
    """Return the difference of the means of the last epochs, and its standard error over the seeds."""
    first, second = ([row["epochs"][-1][what] for row in rows] for rows in (low, high))
    error = (statistics.variance(first) / len(first) + statistics.variance(second) / len(second)) ** 0.5
    return statistics.mean(second) - statistics.mean(first), error


def tables() -> dict[str, Callable[[], str]]:
    """Return the functions by the names of the tables; those in Traditional Chinese end with -zh."""
    functions = {
        "report": report,
        "report-ranks": report_ranks,
        "report-verdict": report_verdict,
        "report-commands": commands,
    }
    found: dict[str, Callable[[], str]] = {}
    for name, function in functions.items():
        found[name] = lambda function=function: function("en")
        found[f"{name}-zh"] = lambda function=function: function("zh")
    return found
