"""What a run asks of a GPU before it begins: kernels for it, and what deterministic algorithms need."""

import os
import re

import torch

from minipeft.errors import MinipeftError


def check_kernels() -> None:
    """Raise where torch was built without kernels for the current GPU."""
    major, minor = torch.cuda.get_device_capability()
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch) for arch in torch.cuda.get_arch_list()]
    # A binary (sm) runs on the same major version with an equal or higher minor one; PTX (compute) on all that follow.
    runs = [
        (int(found[2]) == major and int(found[3]) <= minor)
        if found[1] == "sm"
        else (int(found[2]), int(found[3])) <= (major, minor)
        for found in built
        if found
    ]
    if runs and not any(runs):
        raise MinipeftError(
            f"device cuda: this torch has no kernels for {torch.cuda.get_device_name()} (compute capability "
            f"{major}.{minor}). Install a torch for it, or pass --device cpu."
        )


def check_deterministic() -> None:
    """Raise where torch.use_deterministic_algorithms(True) would make the first matrix product raise."""
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if strict and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        raise MinipeftError(
            "torch.use_deterministic_algorithms: cuBLAS is not deterministic by default. "
            "Set CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts."
        )
