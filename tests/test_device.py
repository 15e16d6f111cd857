"""What a machine has, and what a process took of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from minipeft import device
from minipeft.device import choose_device, choose_max_tokens, choose_precision, peak_memory
from minipeft.errors import MinipeftError
from minipeft.model.families import get_family

PEAK = "from minipeft.device import peak_memory; print(peak_memory('cpu'))"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak begins with its starter's")
def test_the_peak_is_this_processs_own() -> None:
    size = 1 << 30
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])  # touched, so that it is resident
    assert peak_memory("cpu") > size
    child = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    assert 1 << 20 < int(child.stdout) < size
    del block


@pytest.mark.parametrize(
    ("instructions", "vendor", "expected"),
    [
        ({"_is_amx_tile_supported"}, "GenuineIntel", "bf16"),
        ({"_is_amx_tile_supported", "_is_avx512_bf16_supported"}, "GenuineIntel", "bf16"),
        ({"_is_avx512_bf16_supported"}, "GenuineIntel", "fp32"),
        ({"_is_avx512_bf16_supported"}, "AuthenticAMD", "bf16"),
        (set(), "AuthenticAMD", "fp32"),
    ],
)
def test_auto_is_bf16_on_a_cpu_that_is_faster_in_it(
    instructions: set[str], vendor: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions, raising=False)
    monkeypatch.setattr(device, "cpu_vendor", lambda: f"vendor_id : {vendor}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert choose_precision("auto", "cpu") == "fp32"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert choose_precision("auto", "cpu") == expected
    assert [choose_precision(precision, "cpu") for precision in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert choose_precision("auto", "mps") == "fp32"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):  # private: a torch may lack them
        monkeypatch.delattr(torch.cpu, name)
    assert choose_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_on_cuda_from_capability_8(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_precision("auto", "cuda") == choose_precision("auto", "cuda:1") == expected


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_86"], (8, 9), True),  # a later minor version
        (["sm_86"], (8, 0), False),
        (["sm_75", "sm_80"], (6, 1), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (9, 0), True),  # PTX is compiled for it
        (["sm_90a", "sm_100", "compute_120"], (12, 0), True),
        ([], (6, 1), True),  # unknown
    ],
)
def test_a_gpu_without_kernels_in_this_torch_is_an_error(
    built: list[str], capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    if runs:
        assert choose_device("cuda") == "cuda"
    else:
        with pytest.raises(MinipeftError, match=rf"no kernels for Some GPU \(compute capability {capability[0]}\."):
            choose_device("cuda")


GIB = 1 << 30


@pytest.mark.parametrize(
    ("family", "config", "precision", "measured"),  # KiB of saved activations per token, on a fake device
    [
        ("roberta", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}, "bf16", 598),
        ("roberta", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}, "fp32", 1149),
        ("deberta-v2", {}, "bf16", 504),
    ],
)
def test_the_tokens_of_a_batch_fit_into_half_of_the_free_memory_of_a_gpu(
    family: str, config: dict[str, int], precision: str, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = get_family(family).config(model_type=family, **config)
    saved = get_family(family).saved_per_token * shape.hidden_size * shape.num_hidden_layers
    for free in (4 * GIB, 12 * GIB, 80 * GIB):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        tokens = choose_max_tokens("cuda:0", precision, shape.hidden_size, saved)
        expected = min(16384, free / 2 / (1024 * measured))
        assert 0.9 * expected - 256 <= tokens <= 1.05 * expected and tokens % 256 == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB // 64, GIB))
    assert choose_max_tokens("cuda", precision, shape.hidden_size, saved) == 512
    assert choose_max_tokens("cuda", precision, shape.hidden_size) == 16384  # what a token saves is not known


@pytest.mark.parametrize("name", ["gpu", "gpu:1"])
def test_a_gpu_is_called_cuda(name: str) -> None:
    with pytest.raises(MinipeftError, match=f"device {name} is called {name.replace('gpu', 'cuda')} here"):
        choose_device(name)
