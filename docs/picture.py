"""Draw README's picture, throughput and memory compared with transformers + peft, from benchmarks/results/*.json."""

from __future__ import annotations

from pathlib import Path

from tables import lora_training, machines, read

PICTURE = Path(__file__).resolve().parent / "_static" / "speed.svg"
WIDTH, ROW, LEFT, BAR = 760, 26, 268, 370
TEXT_COLOURS = ("#1f2328", "#59636e")  # on a light page; the site replaces them by its own
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #1f2328 }
.head { font-weight: 600 } .soft { fill: #59636e; font-size: 12px } .peer { fill: #9aa4af } .ours { fill: #2f7dc1 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .soft { fill: #9198a1 } .peer { fill: #6e7681 }
.ours { fill: #58a6ff }}
"""


def draw() -> str:
    """Return the picture: LoRA on RTE without dropout, on the machine where the peer at its best comes nearest."""
    grouped = lora_training("fp32", grouped=True) or lora_training("fp32")
    machine = next(name for _, name, row in grouped if row["task"] == "rte" and row["dropout"] == 0)
    rows = next(rows for name, _, rows in machines("cpu") if name == machine)
    case = {"task": "rte", "method": "lora", "mode": "training", "dropout": 0.0, "family": "roberta"}
    chosen = [row for row in rows if all(row[name] == value for name, value in case.items())]
    throughput = [
        (f"transformers + peft, {precision}, {batches}", row["samples_per_second"]["peer"], "peer")
        for precision in ("fp32", "bf16")
        for batches in ("random", "grouped")
        for row in chosen
        if row["peer_precision"] == precision and row["precision"] == precision
        if row["group_by_length"] == (batches == "grouped")
    ]
    for precision in ("fp32", "bf16"):  # of the row against the fastest peer
        ours = [row for row in chosen if row["precision"] == precision]
        if ours:
            row = min(ours, key=lambda row: row["ratio"]["median"])
            throughput.append((f"minipeft, {precision}", row["samples_per_second"]["minipeft"], "ours"))
    memory = read("recorded")["memory"]
    of = {row[0].split(" (")[0]: row for row in memory["rows"] if float(row[1]) == 0}
    usage = [
        ("transformers + peft, fp32", float(of["LoRA, fp32"][3]), "peer"),
        ("transformers + peft, bf16", float(of["LoRA, bf16"][3]), "peer"),
        ("minipeft, fp32", float(of["LoRA, fp32"][2]), "ours"),
        ("minipeft, bf16", float(of["LoRA, bf16"][2]), "ours"),
    ]
    parts, y = [], 22
    for head, bars, digits, unit in (
        ("Throughput: longer is better", throughput, ".1", "samples/s"),
        ("Peak memory: shorter is better", usage, ".2", "GiB"),
    ):
        parts.append(f'<text class="head" x="0" y="{y}">{head}</text>')
        y += 12
        for label, value, look in bars:
            length = BAR * value / max(value for _, value, _ in bars)
            parts.append(f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{label}</text>')
            parts.append(f'<rect class="{look}" x="{LEFT}" y="{y}" width="{length:.1f}" height="20" rx="3"/>')
            parts.append(f'<text x="{LEFT + length + 8:.1f}" y="{y + 15}">{value:{digits}f} {unit}</text>')
            y += ROW
        y += 26
    note = f"LoRA on RTE, roberta-base's shape. Throughput: {machine}; memory: {memory['machine']['cpu']}"
    parts.append(f'<text class="soft" x="0" y="{y - 8}">{note}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img" '
        f'aria-label="Throughput and peak memory of minipeft and of transformers + peft">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
