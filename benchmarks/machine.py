"""Describe the machine of a measurement, and store rows in a JSON file that holds one entry per machine.

{"AMD EPYC, family 25, model 17, 2 threads": {"machine": {…}, "rows": [{…}, …]}, …}
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from minipeft.model.layers import linear

INSTRUCTION_SETS = {  # our name → the name in /proc/cpuinfo
    "AVX2": "avx2",
    "AVX512": "avx512f",
    "AVX512_BF16": "avx512_bf16",
    "AMX": "amx_tile",
}


def describe_machine(device: str) -> dict[str, Any]:
    """Return the CPU's name, family, model and instruction sets, the GPU, versions, date, command, fp32 product rates.

    "fp32_product_rates" holds operations per second: "torch" for torch's default product, "minipeft" for the product
    of model/layers.py, which is oneDNN's on the CPU.
    """
    info = _cpu_info()
    flags = info.get("flags", "").split()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpu_family": info.get("cpu family"),
        "cpu_model": info.get("model"),
        "instruction_sets": [name for name, flag in INSTRUCTION_SETS.items() if flag in flags] if flags else None,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "versions": {
            name: version(name) for name in ("torch", "transformers", "peft", "minipeft") if _is_installed(name)
        },
        "date": time.strftime("%Y-%m-%d"),
        "command": _command(),
        "fp32_product_rates": product_rates(torch.float32, device),
    }


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _command() -> str:
    """Return the command of this process; folders of this machine have short names, as on the pages."""
    arguments = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    for flag, name in (("--data", "GLUE"), ("--tokenizer", "TOKENIZER"), ("--output", "RESULTS")):
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = name
    return " ".join([*arguments[:2], *(Path(argument).name for argument in arguments[2:])])


def _cpu_info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty on other systems than Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def machine_name(machine: dict[str, Any]) -> str:
    """Return the key of a machine in the JSON file."""
    numbers = [f"{name} {machine[f'cpu_{name}']}" for name in ("family", "model") if machine[f"cpu_{name}"]]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return ", ".join([*filter(None, [machine["gpu"]]), machine["cpu"], *numbers, threads])


def write_rows(path: Path, machine: dict[str, Any], rows: list[dict[str, Any]], identity: tuple[str, ...]) -> None:
    """Add rows to a JSON file.

    Args:
        path: the file; it need not exist.
        machine: from `describe_machine`. Entries of other machines are kept.
        rows: measured rows. They replace this machine's rows with the same values of `identity`; others are kept. Each
            is stored with the machine's "command" and "date".
        identity: names of the fields that identify a row.
    """

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in identity)

    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    name, measured = machine_name(machine), {key(row) for row in rows}
    kept = [row for row in content.get(name, {}).get("rows", []) if key(row) not in measured]
    described = [{**row, "command": machine["command"], "date": machine["date"]} for row in rows]
    content[name] = {"machine": machine, "rows": [*kept, *described]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def product_rates(dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return operations per second of a large matrix product, the highest of several, for torch and model/layers.py."""
    x, weight = torch.randn(2048, 768, device=device, dtype=dtype), torch.randn(3072, 768, device=device, dtype=dtype)
    bias, seconds = torch.zeros(3072, device=device, dtype=dtype), {"torch": math.inf, "minipeft": math.inf}
    with torch.no_grad():
        for _ in range(12):
            for name, product in (("torch", F.linear), ("minipeft", linear)):
                start = clock(device)
                for _ in range(8):
                    product(x, weight, bias)
                seconds[name] = min(seconds[name], clock(device) - start)
    return {name: 8 * 2.0 * 2048 * 768 * 3072 / shortest for name, shortest in seconds.items()}


def clock(device: str) -> float:
    """Return the time in seconds, after the device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
