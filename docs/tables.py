"""Fill the tables of README.md and of the site from benchmarks/results/*.json: `python docs/tables.py`.

A page marks a table by `<!-- table: NAME -->` and `<!-- end -->`. This script writes what stands between them, and the
tests compare it with the JSON.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import ablation_tables
import report_tables
from report_tables import TASKS

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
METHODS = {"lora": "LoRA", "bitfit": "BitFit", "full": "full", "head": "head"}


def main() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            page.write_text(filled, encoding="utf-8")
            print(page.relative_to(REPOSITORY))


def pages() -> list[Path]:
    """Return the files with marked tables."""
    candidates = [*sorted(REPOSITORY.glob("README*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return [page for page in candidates if MARKED.search(page.read_text(encoding="utf-8"))]


def fill(text: str) -> str:
    """Return a page's text with every marked table as the JSON has it."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(columns: list[str], right: list[bool], rows: list[list[str]]) -> str:
    lines = [columns, ["---:" if at_right else "---" for at_right in right], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def provenance(entry: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> str:
    """Return a line with machine, date, versions and seeds, and the commands; what was not recorded is left out.

    Rows that have a command and a date of their own take the place of the entry's.
    """
    machine = entry.get("machine") or entry
    own = [row for row in rows or [] if "command" in row]
    numbers = [f"{name} {machine[f'cpu_{name}']}" for name in ("family", "model") if machine.get(f"cpu_{name}")]
    count = machine.get("threads")
    threads = f"{count} thread{'s' if count > 1 else ''}" if count else None
    parts = [", ".join(filter(None, [machine.get("gpu"), machine["cpu"], *numbers, threads]))]
    if machine.get("instruction_sets"):
        parts[0] += f" ({', '.join(machine['instruction_sets'])})"
    parts.append(" and ".join(sorted({row["date"] for row in own})) if own else entry["date"])
    if entry.get("versions"):
        parts.append(", ".join(f"{name} {number}" for name, number in entry["versions"].items()))
    if entry.get("seeds"):
        parts.append(f"seed{'s' if len(entry['seeds']) > 1 else ''} {', '.join(map(str, entry['seeds']))}")
    commands = [entry["command"]] if isinstance(entry["command"], str) else entry["command"]
    commands = list(dict.fromkeys(row["command"] for row in own)) if own else commands
    text = f"\nMeasured on: {'; '.join(parts)}.\n"
    return text + ("\n```bash\n" + "\n".join(commands) + "\n```\n" if commands else "")


def for_each_machine(tables: Callable[[], Iterator[str]]) -> Callable[[], str]:
    """Return a function that joins the tables which `tables` yields, one for each machine."""
    return lambda: "\n".join(tables())


def machines(name: str) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Yield name, description and rows of every machine of a file."""
    for machine, content in read(name).items():
        yield machine, content["machine"], content["rows"]


@for_each_machine
def speed() -> Iterator[str]:
    """Every machine's rows against the peer in fp32: minipeft in fp32 and in bf16 side by side."""
    for name, machine, rows in machines("cpu"):
        plain = [row for row in rows if row["peer_precision"] == "fp32" and not row["group_by_length"]]
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for row in plain:
            family = "" if row["family"] == "roberta" else f"{row['family']}: "
            training = f"{family}{TASKS.get(row['task'], row['task'])} {METHODS[row['method']]}, {row['mode']}"
            dropout = f"{row['dropout']:g}" if row["mode"] == "training" else ""
            found.setdefault((training, dropout), {})[row["precision"]] = row
        lines = []
        for case, by_precision in found.items():
            for precision in ("fp32", "bf16"):
                if row := by_precision.get(precision):
                    rates = row["samples_per_second"]
                    lines.append(
                        [
                            *case,
                            precision,
                            f"{rates['peer']:.2f}",
                            f"{rates['minipeft']:.2f}",
                            spread(row["ratio"]),
                            f"{row['fraction_of_product_rate']:.2f}",
                        ]
                    )
        columns = ["", "dropout", "minipeft in", "peer, fp32", "minipeft", "speedup", "FLOP utilization"]
        rates = machine["fp32_product_rates"]
        heading = f"**{name}** (fp32 products: oneDNN {rates['minipeft'] / 1e9:,.0f} GFLOP/s, "
        heading += f"torch's default {rates['torch'] / 1e9:,.0f} GFLOP/s)\n\n"
        table = markdown(columns, [False, True, False, True, True, True, True], lines)
        yield heading + table + provenance(machine, plain)


def spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def fastest_peer() -> str:
    """The peer with its fastest settings: batches grouped by length, and bf16 where that is faster."""
    lines = []
    for name, _, rows in machines("cpu"):
        for row in rows:
            if row["group_by_length"] or row["peer_precision"] != "fp32":
                batches = "grouped by length" if row["group_by_length"] else "random"
                peer = "bf16 through autocast" if row["peer_precision"] == "bf16" else "fp32"
                rates = row["samples_per_second"]
                ours = f"{rates['minipeft']:.2f} ({row['precision']})"
                what = f"{TASKS.get(row['task'], row['task'])} {METHODS[row['method']]}, {row['mode']}"
                what += "" if row["family"] == "roberta" else f", {row['family']}"
                lines.append([f"{peer}, {batches}", what, f"{rates['peer']:.2f}", ours, spread(row["ratio"]), name])
    columns = ["peer, batches", "", "peer, samples/s", "minipeft, samples/s", "speedup", "machine"]
    command = "python benchmarks/peer.py --data GLUE --tokenizer TOKENIZER --methods lora --modes training --dropouts 0"
    return markdown(columns, [False, False, True, True, True, False], lines) + f"\n```bash\n{command}\n```\n"


def scaling_rows(
    varied: Collection[str], line: tuple[str, str], column: str
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], dict[tuple[Any, Any], dict[Any, Any]]]]:
    """Yield each machine that has rows of scaling.json in which one of `varied` varies, and these rows.

    The third item has them by the two fields of a table's line, and then by that of its column.
    """
    for _, machine, rows in machines("scaling"):
        rows = [row for row in rows if row["varied"] in varied]
        found: dict[tuple[Any, Any], dict[Any, Any]] = {}
        for row in rows:
            found.setdefault((row[line[0]], row[line[1]]), {})[row[column]] = row
        if found:
            yield machine, rows, found


@for_each_machine
def scaling() -> Iterator[str]:
    """The cost of a token, for everything that was varied."""
    units = {"tokens": "{:,} tokens per batch", "length": "{} tokens per sequence", "rank": "rank {}", "shape": "{}"}
    for machine, rows, found in scaling_rows(units, ("varied", "value"), "precision"):
        lines = []
        for (varied, value), by_precision in found.items():
            line = [units[varied].format(value), f"{by_precision['fp32']['operations_per_token'] / 1e6:,.0f}"]
            for precision in ("fp32", "bf16"):
                row = by_precision[precision]
                line.append(f"{row['seconds_per_token'] * 1e6:,.0f}")
                line.append(f"{row['fraction_of_product_rate']:.2f}")
                line.append(f"{row['kept_bytes_per_token'] / 1024:,.0f}")
            lines.append(line)
        measured = ["µs per token", "FLOP utilization", "saved, KiB"]
        columns = ["", "MFLOP per token", *(f"{name}, {p}" for p in ("fp32", "bf16") for name in measured)]
        yield markdown(columns, [False, *[True] * 7], lines) + provenance(machine, rows)


@for_each_machine
def long_texts() -> Iterator[str]:
    """Memory and time of long texts, without and with activation checkpointing."""
    for machine, rows, found in scaling_rows(["long-texts"], ("value", "precision"), "activation_checkpointing"):
        lines = []
        for (tokens, precision), by_checkpointing in found.items():
            both = [by_checkpointing[False], by_checkpointing[True]]
            memory = [f"{row['peak_memory_bytes'] / 2**30:.2f}" for row in both]
            lines.append([f"{tokens:,}", precision, *memory, *(f"{row['seconds']:.1f}" for row in both)])
        names = [f"{unit}, {kind}" for unit in ("GiB", "s/step") for kind in ("without", "with checkpointing")]
        right = [True, False, *[True] * 4]
        yield markdown(["tokens", "precision", *names], right, lines) + provenance(machine, rows)


@for_each_machine
def max_tokens() -> Iterator[str]:
    """Throughput and memory for each number of tokens per batch; the default of the size and precision is marked."""
    for machine, rows, found in scaling_rows(["max-tokens"], ("shape", "value"), "precision"):
        lines = []
        for (shape, value), by_precision in found.items():
            line = [shape, f"{value:,}"]
            for row in (by_precision["fp32"], by_precision["bf16"]):
                default = " (default)" if row["default"] else ""
                line += [f"{row['tokens_per_second']:,.0f}{default}", f"{row['peak_memory_bytes'] / 2**20:,.0f}"]
            lines.append(line)
        columns = ["shape", "tokens per batch"]
        columns += [f"{unit}, {p}" for p in ("fp32", "bf16") for unit in ("tokens/s", "peak MiB")]
        right = [False, *[True] * 5]
        yield markdown(columns, right, lines) + provenance(machine, rows)


@for_each_machine
def startup() -> Iterator[str]:
    """Seconds from the command to the end of the first optimizer step."""
    for _, machine, rows in machines("startup"):
        lines = []
        for row in rows:
            medians = [f"{statistics.median(row['seconds'][side]):.1f}" for side in ("minipeft", "peer")]
            pairs = len(row["seconds"]["peer"])
            lines.append([f"RTE, LoRA, {row['precision']}", *medians, f"{spread(row['ratio'])}, {pairs} pairs"])
        columns = ["from the command to the end of the first step", "minipeft, s", "peer, s", "ratio"]
        yield markdown(columns, [False, True, True, True], lines) + provenance(machine, rows)


@for_each_machine
def bf16_accuracy() -> Iterator[str]:
    """Accuracy in bf16 and in fp32."""
    for _, machine, rows in machines("precision"):
        lines = []
        for row in rows:
            accuracies = [", ".join(f"{value:.3f}" for value in row["accuracy"][p]) for p in ("bf16", "fp32")]
            difference = [f"{row['difference']:+.3f}", f"{row['standard_error']:.3f}"]
            lines.append([TASKS.get(row["task"], row["task"]), row["model"], *accuracies, *difference])
        seeds = f"seeds {', '.join(map(str, rows[0]['seeds']))}"
        columns = ["task", "model", f"bf16, {seeds}", f"fp32, {seeds}", "difference of the means", "standard error"]
        yield markdown(columns, [False] * 4 + [True] * 2, lines) + provenance(machine, rows)


@for_each_machine
def tokens() -> Iterator[str]:
    """Token classification next to the peer: the mean over the seeds and its standard error."""
    for _, machine, rows in machines("tokens"):
        settings = ("data", "model", "method", "metric", "train_limit", "epochs", "lr")
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in rows:
            found.setdefault(tuple(row[name] for name in settings), []).append(row)
        lines = []
        for (data, model, method, metric, limit, epochs, lr), runs in found.items():
            training = f"{f'{limit:,}' if limit else 'all'} sentences, {epochs} epochs, lr {lr:g}"
            values = [ablation_tables.mean_and_error([run[side] for run in runs]) for side in ("minipeft", "peer")]
            case = [TASKS[data], model, {"lora": "LoRA, r = 8"}.get(method, method), metric, training, str(len(runs))]
            lines.append([*case, *values])
        columns = ["data", "model", "method", "metric", "training", "seeds", "minipeft", "transformers + peft"]
        yield markdown(columns, [False] * 5 + [True] * 3, lines) + provenance(machine, rows)


@for_each_machine
def processes() -> Iterator[str]:
    """The throughput of training with several processes."""
    for _, machine, rows in machines("processes"):
        lines = []
        for row in rows:
            count, cores = row["processes"], row["cores"]
            name = f"{count} on {cores} cores" if count > cores else str(count)
            speedup = f"{spread(row['speedup'])} over {row['rounds']} rounds" if count > 1 else "1"
            lines.append([name, f"{row['samples_per_second']:.2f}", f"{row['seconds_per_step']:.2f}", speedup])
        columns = ["processes, one thread each", "samples/s", "seconds per step", "speedup"]
        yield markdown(columns, [False, True, True, True], lines) + provenance(machine)


@for_each_machine
def all_reduce() -> Iterator[str]:
    """The seconds of an all-reduce and of a step, measured and as the formula of scaling-out.md predicts them."""
    for _, machine, rows in machines("processes"):
        several = [row for row in rows if row["processes"] > 1]
        sizes = several[0]["bytes"]
        lines = []
        kinds = {"one number": "one number", "lora": "LoRA r = 2 and the head", "full": "all parameters"}
        for name, what in kinds.items():
            line = [f"all-reduce: {what}", format_bytes(sizes[name])]
            for row in several:
                line.append(milliseconds(row["all_reduce_seconds"][name]))
                fitted = row["processes"] == 2 and name != "lora"
                line.append("fitted" if fitted else milliseconds(row["predicted_all_reduce_seconds"][name]))
            lines.append(line)
        steps = [row[name] for row in several for name in ("seconds_per_step", "predicted_seconds_per_step")]
        lines.append(["step of LoRA, 64 examples", "", *map(milliseconds, steps)])
        columns = ["", "bytes"]
        columns += [f"N = {row['processes']}, {how}" for row in several for how in ("measured", "predicted")]
        bandwidth, latency = several[0]["bandwidth"], several[0]["latency"]
        text = markdown(columns, [False, *[True] * (len(columns) - 1)], lines)
        text += f"\nBandwidth {bandwidth / 1e9:.2f} GB/s and latency {1e6 * latency:.0f} µs, fitted to N = 2. "
        text += f"A step with one process: {milliseconds(rows[0]['seconds_per_step'])}.\n"
        yield text + provenance(machine)


def gpu() -> str:
    """One table for each part of benchmarks/gpu.py; before its first run on a GPU they say so."""
    titles = {
        "parity": "largest difference of a logit, and of 50 losses, to the CPU",
        "attention": "largest difference to the plain attention",
        "throughput": "samples/s, and peak memory, of a training step",
        "end to end": "from the call to the result",
        "products": "TFLOP/s of matrix products",
    }
    found = list(machines("gpu")) if (RESULTS / "gpu.json").is_file() else []
    text = ""
    for part, title in titles.items():
        lines = [
            [row["name"], row["precision"], describe_gpu_row(row)]
            for _, _, rows in found
            for row in rows
            if row["part"] == part
        ]
        text += markdown([part, "precision", title], [False, False, True], lines or [["not measured"] * 3]) + "\n"
    return text.rstrip("\n") + "\n" + "".join(provenance(entry) for _, entry, _ in found)


def describe_gpu_row(row: dict[str, Any]) -> str:
    """Return the measured values of a row of benchmarks/gpu.py."""
    units = {
        "logits": "{:.1e}",
        "losses": "{:.1e}",
        "difference": "{:.1e}",
        "samples_per_second": "{:,.0f}",
        "seconds": "{:.1f} s",
        "error": "{}",
    }
    values = [pattern.format(row[name]) for name, pattern in units.items() if name in row]
    values += [format_bytes(row["peak_memory_bytes"])] if "peak_memory_bytes" in row else []
    values += [f"{row['operations_per_second'] / 1e12:,.0f}"] if "operations_per_second" in row else []
    return ", ".join(values)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms" if seconds < 0.01 else f"{1e3 * seconds:,.0f} ms"


def format_bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size} B"


def recorded(name: str) -> Callable[[], str]:
    """Return the function that writes a table of recorded.json."""

    def write() -> str:
        entry = read("recorded")[name]
        rows = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in entry["rows"]]
        return markdown(entry["columns"], [align == "right" for align in entry["align"]], rows) + provenance(entry)

    return write


def lora_training(precision: str, grouped: bool = False) -> list[tuple[float, str, dict[str, Any]]]:
    """Return (speedup, machine, row) of roberta-base's LoRA training against the peer in fp32, the lowest first."""
    found = [
        (row["ratio"]["median"], name, row)
        for name, _, rows in machines("cpu")
        for row in rows
        if row["method"] == "lora" and row["mode"] == "training" and row["precision"] == precision
        if row["peer_precision"] == "fp32" and row["group_by_length"] == grouped and row["family"] == "roberta"
    ]
    return sorted(found, key=lambda entry: entry[0])


def speedups() -> tuple[tuple[float, str, str], list[float]]:
    """Return the lowest speedup of all training rows, and those of LoRA in fp32 on random batches.

    The lowest comes with its machine and the peer's batches, "grouped" or "random".
    """
    every = [
        (row["ratio"]["median"], name, "grouped" if row["group_by_length"] else "random")
        for name, _, rows in machines("cpu")
        for row in rows
        if row["mode"] == "training"
    ]
    random = [ratio for ratio, _, _ in lora_training("fp32")]
    for name in ("mkl", "xeon", "grouped_peer"):  # measured before the JSON had a row of each
        entry = read("recorded")[name]
        numbers = [f"{name} {entry['machine'][f'cpu_{name}']}" for name in ("family", "model")]
        for what, *_, ratio in entry["rows"]:
            batches, value = "grouped" if "grouped" in what else "random", float(ratio.split()[0])
            every.append((value, ", ".join([entry["machine"]["cpu"], *numbers]), batches))
            random += [value] if batches == "random" else []
    return min(every), sorted(random)


def lowest_speedup() -> str:
    """The sentence of docs/speed.md on the lowest speedups in training and in evaluation."""
    (lowest, machine, batches), _ = speedups()
    batches = "batches grouped by length" if batches == "grouped" else "random batches"
    every = [row for _, _, rows in machines("cpu") for row in rows]
    evaluation = min(row["ratio"]["median"] for row in every if row["mode"] == "evaluation")
    return (
        f"The lowest training speedup of all settings and machines that were measured is {lowest:.2f} ({batches}; "
        f"{machine}), and the lowest in evaluation {evaluation:.2f}.\n"
    )


def why(language: str = "en") -> str:
    """README's three points; the speed's first number is the lowest of every machine, setting and peer."""
    pages = len(list((REPOSITORY / "walkthroughs").glob("[0-9]*.py")))
    (lowest, machine, batches), random = speedups()
    in_words = {"grouped": ("batches grouped by length", "依長度分組的批次"), "random": ("random batches", "隨機批次")}
    english, chinese = in_words[batches]
    memory = [row[4] for row in read("recorded")["memory"]["rows"] if row[0] == "LoRA, fp32"]
    if language == "zh":
        times, part = f"{random[0]:.1f} 至 {random[-1]:.1f}", f"{min(memory)} 至 {max(memory)}"
        return f"""\
- **學習**：編碼器、方法與訓練迴圈都是直白的程式碼，沒有 hook 與 callback；附習題的
  [{pages} 篇逐步講解](docs/walkthroughs/index.md)從論文推導並執行它們。
- **工作**：相對於 transformers + peft，訓練時量測到的最低[加速比](docs/speed.md)為 {lowest:.2f}，此時對方使用最快的設定
  （{chinese}；{machine}）。對方使用隨機批次時，
  fp32 的 LoRA 訓練速度為其 {times} 倍，記憶體用量為其 {part} 倍。peft 可以開啟這些 adapter。
- **比較**：50 個最佳化步驟的每個損失都與 transformers + peft 相同，
  [誤差在 1e-4 以內](docs/accuracy.md#parity)；[`minipeft compare`](docs/comparing.md)
  以一個指令執行多個任務、方法、秩與隨機種子。
"""
    times, part = f"{random[0]:.1f} to {random[-1]:.1f}", f"{min(memory)} to {max(memory)}"
    return f"""\
- **To learn**: the encoder, the methods and the training loop are plain code without hooks or callbacks, and
  [{pages} walkthroughs](docs/walkthroughs/index.md) with exercises derive them from the papers and execute them.
- **To work**: the lowest training [speedup over transformers + peft](docs/speed.md) is {lowest:.2f}, with the peer at
  its best ({english}; {machine}). With the peer's random batches, LoRA training in fp32
  is {times} times as fast, in {part} of the memory. peft opens the adapters.
- **To compare**: every loss of 50 optimizer steps equals that of transformers + peft
  [within 1e-4](docs/accuracy.md#parity), and [`minipeft compare`](docs/comparing.md) runs tasks, methods, ranks and
  seeds as one command.
"""


def methods_short(language: str = "en") -> str:
    """README's table of methods."""
    entry = read("recorded")["methods"]
    lines = []
    for name, paper, parameters, in_peft, *_ in entry["rows"]:
        if "," not in name or name.startswith("LoRA+"):  # a method with its default settings
            lines.append([name, paper, f"{parameters:,}", in_peft])
    columns = ["method", "paper", "parameters on roberta-base", "peft opens it"]
    if language == "zh":
        columns = ["方法", "論文", "roberta-base 上的參數量", "peft 可開啟"]
        lines = [[*line[:3], {"yes": "是", "no": "否"}[line[3]]] for line in lines]
    return markdown(columns, [False, False, True, False], lines)


def prediction() -> str:
    """The rows of benchmarks/predict.py; before its first run the table says so."""
    columns = ["", "rows/s", "1 text", "32 texts", "peak memory", "file", "same labels"]
    found = list(machines("prediction")) if (RESULTS / "prediction.json").is_file() else []
    if not found:
        return markdown(columns, [False, *[True] * 6], [["not measured"] * 7])
    text = []
    for name, machine, rows in found:
        lines = [
            [
                f"{row['side']}, {row['model']}",
                f"{row['rows_per_second']:.1f}",
                *(milliseconds(row[f"latency_{count}_seconds"]) for count in (1, 32)),
                *(format_bytes(row[key]) for key in ("peak_memory_bytes", "file_bytes")),
                f"{row['agreement']:.2%}",
            ]
            for row in rows
        ]
        text.append(f"**{name}**\n\n{markdown(columns, [False, *[True] * 6], lines)}{provenance(machine, rows)}")
    return "\n".join(text)


TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "fastest-peer": fastest_peer,
    "lowest-speedup": lowest_speedup,
    "scaling": scaling,
    "processes": processes,
    "tokens": tokens,
    "all-reduce": all_reduce,
    "max-tokens": max_tokens,
    "long-texts": long_texts,
    "startup": startup,
    "gpu": gpu,
    "prediction": prediction,
    "bf16-accuracy": bf16_accuracy,
    "why": why,
    "methods-short": methods_short,
    "why-zh": lambda: why("zh"),
    "methods-short-zh": lambda: methods_short("zh"),
    **report_tables.tables(),
    **ablation_tables.tables(),
    **{name.replace("_", "-"): recorded(name) for name in read("recorded")},
}

if __name__ == "__main__":
    sys.exit(main())
