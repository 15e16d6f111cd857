"""The product through oneDNN against torch's own, forward and backward; and where it is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import largest, ragged, reference_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from minipeft import BitFit, Full, LoRA, apply, load_pretrained, pack
from minipeft.device import cpu_vendor
from minipeft.model import layers as module
from minipeft.model.layers import linear, uses_onednn

HAS_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def multiplies_bf16_through_onednn() -> bool:
    """Whether this CPU has AVX-512, and torch and oneDNN both use it (ATEN_CPU_CAPABILITY, DNNL_MAX_CPU_ISA)."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


HAS_BF16 = pytest.mark.skipif(not multiplies_bf16_through_onednn(), reason="oneDNN has no bf16 product on this CPU")


def test_the_path_through_onednn_is_taken_where_the_cpu_has_it() -> None:
    assert uses_onednn(torch.bfloat16) == multiplies_bf16_through_onednn()
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or "GenuineIntel" in cpu_vendor():
        assert not uses_onednn(torch.float32)


def rounding(a: Tensor, b: Tensor) -> float:
    """What float32 may be off in a @ b: half a unit in the last place of each term, adding up as random errors do."""
    return float(2**-24 * (4 + a.shape[1] ** 0.5) * (a.detach().abs() @ b.detach().abs() + 1).max())


@HAS_ONEDNN
@given(
    tokens=st.integers(1, 90),
    sizes=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    trains=st.tuples(*[st.booleans()] * 3).filter(any),
)
@example(tokens=2048, sizes=(768, 3072), trains=(True, True, True))
@example(tokens=1, sizes=(1024, 2), trains=(True, False, False))
@settings(max_examples=60, deadline=None)
def test_the_product_through_onednn_is_torchs(
    tokens: int, sizes: tuple[int, int], trains: tuple[bool, bool, bool]
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, sizes[0]), (sizes[1], sizes[0]), (sizes[1],)]
    tensors = [
        torch.randn(shape, generator=generator).requires_grad_(one) for shape, one in zip(shapes, trains, strict=True)
    ]
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    grad = torch.randn(tokens, sizes[1], generator=generator)
    found = module._Linear.apply(*tensors, None)  # type: ignore[no-untyped-call]
    exact = F.linear(*(tensor.double() for tensor in tensors))
    x, weight, _ = tensors
    assert largest(found.double(), exact) < rounding(x, weight.T)
    bounds = [rounding(grad, weight), rounding(grad.T, x), rounding(torch.ones(1, tokens), grad)]
    gradients, exact_gradients = (
        torch.autograd.grad(output, wanted, grad.to(output.dtype)) for output in (found, exact)
    )
    for a, b, bound in zip(
        gradients, exact_gradients, [b for b, one in zip(bounds, trains, strict=True) if one], strict=True
    ):
        assert largest(a.double(), b.double()) < bound


@HAS_ONEDNN
def test_a_frozen_layer_keeps_no_input_for_its_way_back() -> None:
    x, weight, bias = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3), torch.randn(4)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module._Linear.apply(x, weight, bias, None)  # type: ignore[no-untyped-call]
        assert [tensor.shape for tensor in kept] == [weight.shape]
        kept.clear()
        module._Linear.apply(x, weight.requires_grad_(), bias, None)  # type: ignore[no-untyped-call]
        assert {tuple(tensor.shape) for tensor in kept} == {(5, 3), (4, 3)}


def test_onednn_can_be_turned_off_and_serves_two_dtypes_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(module._Linear, "apply", lambda *inputs: calls.append(inputs) or F.linear(*inputs[:3]))
    module._has_product.cache_clear()
    x, weight, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    for dtype in (torch.float32, torch.bfloat16):
        linear(*(tensor.to(dtype) for tensor in (x, weight, bias)))
    served = len(calls)
    assert served == sum(uses_onednn(dtype) for dtype in (torch.float32, torch.bfloat16))
    for dtype, device in ((torch.float64, "cpu"), (torch.float16, "cpu"), (torch.float32, "meta")):
        linear(*(tensor.to(device, dtype) for tensor in (x, weight, bias)))
    with torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight, bias)
    module._has_product.cache_clear()
    assert len(calls) == served


def test_a_machine_without_the_product_is_served_by_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> Tensor:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(module, "_product", absent)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    module._has_product.cache_clear()
    try:
        assert not uses_onednn(torch.float32)
        x, weight, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    finally:
        module._has_product.cache_clear()


def frozen(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(sizes).bfloat16(), requires_grad=False)


@given(tokens=st.integers(1, 90), sizes=st.tuples(st.integers(1, 130), st.integers(1, 130)))
@example(tokens=128, sizes=(768, 3072))
@settings(max_examples=60, deadline=None)
def test_a_frozen_bfloat16_weight_gives_the_exact_product_on_every_cpu(tokens: int, sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, bias = frozen(sizes[1], sizes[0]), frozen(sizes[1])
    x, grad = torch.randn(tokens, sizes[0]).bfloat16().requires_grad_(), torch.randn(tokens, sizes[1]).bfloat16()
    found = linear(x, weight, bias)
    assert (weight in module._LAYOUTS) == multiplies_bf16_through_onednn()
    exact = F.linear(x.double(), weight.double(), bias.double())
    # The result is rounded to 8 bits once; the sums are float32's.
    assert largest(found.double() / (1 + exact.abs()), exact / (1 + exact.abs())) < 2**-8
    (gradient,) = torch.autograd.grad(found, x, grad)
    exact = grad.double() @ weight.double()
    assert largest(gradient.double() / (1 + exact.abs()), exact / (1 + exact.abs())) < 2**-8


@HAS_BF16
def test_a_layout_follows_its_weight_and_ends_with_it() -> None:
    weight, bias, x = frozen(4, 3), frozen(4), torch.randn(5, 3).bfloat16()

    def agrees(weight: nn.Parameter) -> bool:
        layouts = module._prepacked_weights_of(weight)
        assert layouts is not None and layouts is module._prepacked_weights_of(weight)
        found = module._Linear.apply(x, weight, bias, layouts)  # type: ignore[no-untyped-call]
        return torch.equal(found, F.linear(x, weight, bias))

    before = len(module._LAYOUTS)
    assert agrees(weight)
    with torch.no_grad():
        weight.copy_(torch.randn(4, 3))
    assert agrees(weight)
    weight.data = torch.randn(4, 3).bfloat16()
    assert agrees(weight)
    assert len(module._LAYOUTS) == before + 1
    del weight
    assert len(module._LAYOUTS) == before


def test_only_frozen_bfloat16_parameters_are_laid_out() -> None:
    weight = frozen(4, 3)
    assert module._prepacked_weights_of(nn.Parameter(weight.float(), requires_grad=False)) is None
    assert module._prepacked_weights_of(nn.Parameter(weight.detach())) is None
    assert module._prepacked_weights_of(weight.detach().clone()) is None  # a product of the moment, such as a cast
    with torch.inference_mode():
        assert module._prepacked_weights_of(frozen(4, 3)) is None  # nobody could tell whether it was written to


@pytest.mark.parametrize("method", [LoRA(targets=("query", "value", "intermediate")), BitFit(), Full()], ids=repr)
def test_a_models_logits_and_gradients_do_not_depend_on_the_product(method: object, tmp_path: Path) -> None:
    reference_model().save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = apply(load_pretrained(tmp_path), method).eval()  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter)
    batch = pack(ragged((7, 1, 40, 3, 300)), [0, 1, 0, 1, 0], config=model.config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    results = []
    for enabled in (True, False):
        with torch.backends.mkldnn.flags(enabled=enabled):
            logits = model(batch)
            assert batch.labels is not None
            gradients = torch.autograd.grad(F.cross_entropy(logits, batch.labels, reduction="sum"), trained)
            results.append((logits, gradients))
    assert largest(results[0][0], results[1][0]) < 1e-5
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert largest(a, b) < 1e-4
