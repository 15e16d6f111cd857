"""Which device and precision a run uses, and how many tokens a batch has. torch is imported where it is needed."""

import platform
import sys
from pathlib import Path

from minipeft.errors import MinipeftError, check_choice, logger, under_torchrun

MAX_TOKENS = {"cpu": 768, "mps": 4096, "cuda": 16384}  # of a batch, where the memory allows
MEMORY_FRACTION = 0.5  # of a GPU's free memory, for saved activations; the rest is for weights, gradients and AdamW


def choose_device(device: str) -> str:
    """Return the device: "cpu", "mps", "cuda" (the current GPU), or one GPU such as "cuda:1".

    A GPU that is named becomes the current one, for the libraries that ask torch for it.

    Raises:
        MinipeftError: for a device that this machine does not have, and for a GPU that this torch has no kernels for or
            whose deterministic algorithms are not set up.
    """
    import torch

    name, colon, number = device.partition(":")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        name = next(name for name in ("cuda", "mps", "cpu") if present[name])
    if name == "gpu":
        raise MinipeftError(f"device {device} is called cuda{colon}{number} here. Pass --device cuda{colon}{number}.")
    check_choice("device", name, ("auto", *present))
    if not present[name]:
        raise MinipeftError(f"device {name}: this machine or this torch has none. Pass --device cpu.")
    if colon:
        if name != "cuda" or not number.isdecimal() or int(number) >= torch.cuda.device_count():
            raise MinipeftError(f"device {device}: this machine has no such GPU. Pass --device {name}.")
        if under_torchrun():
            raise MinipeftError(f"device {device}: torchrun gives each process a GPU. Pass --device cuda.")
        torch.cuda.set_device(int(number))
    if name == "cuda":
        from minipeft.cuda import check_deterministic, check_kernels

        check_kernels()
        check_deterministic()
    return f"cuda:{int(number)}" if colon else name


def choose_precision(precision: str, device: str) -> str:
    """Return bf16 or fp32; "auto" is bf16 where the device computes faster in it, else fp32."""
    check_choice("precision", precision, ("auto", "fp32", "bf16"))
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return precision


def has_fast_bf16(device: str) -> bool:
    """Return whether a device computes faster in bf16 than in fp32.

    CUDA does from compute capability 8.0, a CPU with AMX, and one of AMD with AVX512-BF16; an Intel Xeon with
    AVX512-BF16 and without AMX was slower. Others convert each number to float32 and back, or compute them one by one.
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_capability() >= (8, 0)
    if device != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":  # ATEN_CPU_CAPABILITY may lower it
        return False
    # Private in torch, and absent in some builds.
    amx, avx512_bf16 = (
        getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return amx or (avx512_bf16 and "AuthenticAMD" in cpu_vendor())


def cpu_vendor() -> str:
    """Return a text that names the CPU's vendor, such as AuthenticAMD; "" where the system does not say."""
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else platform.processor()


def bf16_slowdown(device: str) -> float:
    """Return how many times longer a matrix product takes in bf16 than in fp32; below 1 where bf16 is faster."""
    import torch
    from torch.utils.benchmark import Timer

    matrices = (torch.ones(256, 256, dtype=dtype, device=device) for dtype in (torch.float32, torch.bfloat16))
    fp32, bf16 = (Timer("x @ x", globals={"x": x}).timeit(4).mean for x in matrices)
    return bf16 / fp32


def inference_precision(precision: str, device: str) -> str:
    """Return the precision in which a run that was trained in `precision` predicts: fp32 where bf16 is slow.

    The answers then differ from those of the run by bf16's rounding of the frozen weights and the activations.
    """
    return "fp32" if device == "cpu" and not has_fast_bf16(device) else precision


def warn_of_slow_bf16(precision: str, device: str) -> None:
    """Log one line where a run computes in bf16 on a device that is slow in it."""
    slow = precision == "bf16" and device == "cpu" and not has_fast_bf16(device)
    if slow and (factor := bf16_slowdown(device)) > 1:
        logger.warning(
            "precision bf16: this CPU has no fast bf16 instructions; a matrix product takes %.1f times as long as in "
            "fp32. A new run is faster with --precision fp32.",
            factor,
        )


def choose_max_tokens(device: str, precision: str, hidden_size: int, saved_per_token: float = 0.0) -> int:
    """Return how many tokens a batch has at most.

    On a CPU a batch of roberta-base has 768 tokens in fp32, and 1,024 in bf16, where each takes half of the memory. A
    smaller encoder has more and a larger one fewer, so that the activations of a layer take about as many bytes. On a
    GPU a batch has 16,384 tokens, or as many as the memory that is free now allows, where `saved_per_token` is known:
    the numbers that all layers save for the backward pass of a token.
    """
    if device.startswith("cuda"):
        import torch

        free = torch.cuda.mem_get_info(device)[0] if saved_per_token else sys.maxsize
        fits = int(MEMORY_FRACTION * free / (max(saved_per_token, 1.0) * (2 if precision == "bf16" else 4)))
        return min(MAX_TOKENS["cuda"], max(fits // 256 * 256, 512))
    if device != "cpu":
        return MAX_TOKENS[device]
    tokens = (1024 if precision == "bf16" else MAX_TOKENS["cpu"]) * 768 // hidden_size
    return min(max(tokens // 64 * 64, 256), 4096)


def peak_memory(device: str) -> int:
    """Return the peak in bytes: of the CUDA allocator, or of the whole process; 0 where the system does not say."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
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
