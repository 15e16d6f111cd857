"""Which device and precision a run uses, and how many tokens a batch has. torch is imported where it is needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from minipeft.errors import MinipeftError, check_choice, under_torchrun

MAX_TOKENS = {"cpu": 768, "mps": 4096, "cuda": 16384}  # of a batch; more for a larger machine


def choose_device(device: str) -> str:
    """Return cuda, mps or cpu for "auto"; raise MinipeftError for a device that is absent.

    "cuda:1" makes that GPU the current one, and returns cuda.
    """
    import torch

    device, colon, number = device.partition(":")

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if present[name])
    check_choice("device", device, ("auto", *present))
    if not present[device]:
        raise MinipeftError(f"device {device}: this machine or this torch has none. Pass --device cpu.")
    if colon:
        if device != "cuda" or not number.isdecimal() or int(number) >= torch.cuda.device_count():
            raise MinipeftError(f"device {device}:{number}: this machine has no such GPU. Pass --device {device}.")
        if under_torchrun():
            raise MinipeftError(f"device {device}:{number}: torchrun gives each process a GPU. Pass --device cuda.")
        torch.cuda.set_device(int(number))
    return device


def choose_precision(precision: str, device: str) -> str:
    """Return bf16 or fp32; "auto" is bf16 where the device multiplies bf16 natively, else fp32."""
    check_choice("precision", precision, ("auto", "fp32", "bf16"))
    if precision == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    return precision


def multiplies_bf16(device: str) -> bool:
    """Whether a device has bf16 products: CUDA from compute capability 8.0, a CPU with AVX512-BF16 or AMX."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private in torch, and absent in some builds
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def choose_max_tokens(device: str, precision: str, hidden_size: int) -> int:
    """Return how many tokens a batch has at most.

    On a CPU a batch of roberta-base has 768 tokens in fp32, and 1,024 in bf16, where each takes half of the memory. A
    smaller encoder has more and a larger one fewer, so that the activations of a layer take about as many bytes.
    """
    if device != "cpu":
        return MAX_TOKENS[device]
    tokens = (1024 if precision == "bf16" else MAX_TOKENS["cpu"]) * 768 // hidden_size
    return min(max(tokens // 64 * 64, 256), 4096)


def check_deterministic(device: str) -> None:
    """Raise where torch.use_deterministic_algorithms(True) would make the first matrix product on CUDA raise."""
    import torch

    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if strict and device.startswith("cuda") and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        raise MinipeftError(
            "torch.use_deterministic_algorithms: cuBLAS is not deterministic by default. "
            "Set CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts."
        )


def check_cuda_graphs(device: str, activation_checkpointing: bool) -> None:
    """Raise where --cuda-graphs on is not possible, whatever the model is."""
    if not device.startswith("cuda"):
        raise MinipeftError(f"--cuda-graphs on: the device is {device}, not a CUDA device. Pass --cuda-graphs off.")
    if activation_checkpointing:
        raise MinipeftError(
            "--cuda-graphs on with --activation-checkpointing: a graph cannot draw the same dropout twice. "
            "Pass --cuda-graphs off."
        )


def peak_memory(device: str) -> int:
    """Return the peak in bytes: of the CUDA allocator, or of the whole process; 0 where the system does not say."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux; ru_maxrss would begin with what the process that started this one had
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
