"""A device "cuda" on a machine and a torch without CUDA, for tests of what a training step asks the device for.

Tensors of the host are real. Tensors on "cuda" are torch's FakeTensors: shapes, dtypes, strides and a device, without
numbers. A dispatch mode sends each operator to one of the two, and counts in a `Counts`

    waits      what makes the host wait for the device: .item(), nonzero, a copy that is not asynchronous, …
    mixed      operators on tensors of both devices, which CUDA refuses (0-dimensional host tensors are allowed)
    launches   operators that start work on the device (views and empty allocations are left out)

All of this hooks into private parts of torch, which change from release to release: CHECKED_ON is the one that the
hooks were written for, and on any other the tests that use them are skipped by name.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only

CHECKED_ON = "2.13"
needs_fake_cuda = pytest.mark.skipif(
    not torch.__version__.startswith(f"{CHECKED_ON}.") or torch.cuda.is_available(),
    reason=f"the fake CUDA device (tests/fake_cuda.py) is for torch {CHECKED_ON} without a GPU",
)

CUDA = torch.device("cuda", 0)
# Operators whose result, or the shape of whose result, only the device knows.
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"),
    *("is_nonzero", "bincount"),
}
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"),
    *("_reshape_alias", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size", "device"),
    *("_has_compatible_shallow_copy_type", "resize_", "set_"),
}


class Counts:
    """What a piece of a run asked the device for: Counters of descriptions, and of operators for `launches`."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()


def _site() -> str:
    """The line in minipeft that an operator comes from."""
    for frame in reversed(traceback.extract_stack()):
        if "/minipeft/" in frame.filename and "site-packages" not in frame.filename:
            return f"{frame.filename.split('/minipeft/')[-1]}:{frame.lineno}"
    return "the backward pass, or a test"


@functools.cache
def _is_composite(operator: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")


class FakeCuda(TorchDispatchMode):
    """The dispatch mode; `counts` may be replaced at any time, as at the start of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if operator is torch.ops.prim.device.default:  # asked by C++; Python reads FakeTensor.device, which is cuda:0
            return torch.device("meta") if args[0].fake_mode.in_kernel_invocation else torch.device("lent", 0)
        args, kwargs = tree_map_only(torch.device, lambda d: CUDA if d.type == "lent" else d, (args, kwargs))
        name = operator._schema.name.removeprefix("aten::")
        flat = tree_flatten((args, kwargs))[0]
        tensors = [x for x in flat if isinstance(x, Tensor)]
        on_device = any(isinstance(x, FakeTensor) for x in tensors)
        if not on_device and not any(isinstance(x, torch.device) and x.type == "cuda" for x in flat):
            with _disable_current_modes():
                return operator(*args, **kwargs)
        if _is_composite(operator):  # in inference mode it arrives whole
            with self:
                return operator.decompose(*args, **kwargs)
        if name in ("uniform_", "normal_", "random_"):  # their fake versions need a device guard, which is absent
            self.counts.launches[name] += 1
            return args[0]
        if name in ("_to_copy", "copy_"):
            return self._copy(operator, name, args, kwargs)
        if name in WAITING:
            self.counts.waits[f"{name} at {_site()}"] += 1
            if name == "_local_scalar_dense":
                return 1.0 if args[0].dtype.is_floating_point else torch.ones((), dtype=args[0].dtype).item()
        if on_device and any(x.dim() > 0 for x in tensors if not isinstance(x, FakeTensor)):
            self.counts.mixed[f"{operator} at {_site()}"] += 1
        return self._launch(operator, name, args, kwargs)

    def _launch(self, operator: Any, name: str, args: Any, kwargs: Any) -> Any:
        result = operator(*args, **kwargs)
        if not operator.is_view and name not in FREE and "view" not in name:
            self.counts.launches[name] += 1
        return result

    def _copy(self, operator: Any, name: str, args: Any, kwargs: Any) -> Any:
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
        asynchronous = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
        dtype = kwargs.get("dtype") or source.dtype
        if isinstance(source, FakeTensor) and target.type == "cpu":
            if not asynchronous:
                self.counts.waits[f"a copy to the host at {_site()}"] += 1
            with _disable_current_modes():
                return args[0].fill_(1) if name == "copy_" else torch.ones(tuple(source.shape), dtype=dtype)
        if not isinstance(source, FakeTensor) and target.type == "cuda":
            if not asynchronous or not getattr(source, "is_pinned_here", source.dim() == 0):
                kind = "an unpinned" if asynchronous else "a blocking"
                self.counts.waits[f"{kind} copy of {source.nbytes} bytes from the host at {_site()}"] += 1
            moved = torch.empty(tuple(source.shape), dtype=dtype, device=CUDA)
            return operator(args[0], moved) if name == "copy_" else moved
        if name == "_to_copy" and target.type == "cuda" and dtype == source.dtype:
            return source  # x.to(x.device): C++ takes the device for another one, of the backend that is lent
        return self._launch(operator, name, args, kwargs)


@functools.cache
def _lend_a_backend() -> None:
    """Let C++ take a fake tensor for one of a backend in Python, here "lent".

    A torch without CUDA has neither guard nor hooks for CUDA, and the autograd engine needs both.
    """
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("lent")


class _WithIndex(TorchFunctionMode):
    """ "cuda" → "cuda:0"; a torch without CUDA has no current device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def with_index(x: Any) -> Any:
            is_cuda = x == "cuda" if isinstance(x, str) else isinstance(x, torch.device) and x == torch.device("cuda")
            return CUDA if is_cuda else x

        return function(*map(with_index, args), **{name: with_index(x) for name, x in (kwargs or {}).items()})


class _Event:
    def record(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


def _pin_memory(x: Tensor) -> Tensor:
    assert not isinstance(x, FakeTensor), f"pin_memory of a tensor on the device at {_site()}"
    with _disable_current_modes():
        pinned = x.clone()
    pinned.is_pinned_here = True  # type: ignore[attr-defined]
    return pinned


@contextlib.contextmanager
def fake_cuda(capability: tuple[int, int] = (9, 0)) -> Iterator[FakeCuda]:
    """A device "cuda" with a compute capability."""
    _lend_a_backend()
    is_cuda = property(lambda tensor: tensor.fake_device.type == "cuda")
    with contextlib.ExitStack() as stack:
        for patch in (
            mock.patch.object(FakeTensor, "is_cuda", is_cuda, create=True),
            mock.patch.object(Tensor, "pin_memory", _pin_memory),
            mock.patch.object(FakeTensorMode, "avoid_device_init", True),  # torch.tensor(…, device="cuda") is a copy
            mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None),
            mock.patch.object(torch.cuda, "get_device_capability", lambda *_: capability),
            mock.patch.object(torch.cuda, "Event", _Event),
            mock.patch.object(torch.cuda, "current_stream", lambda *_: None),
            mock.patch.object(torch.cuda, "max_memory_allocated", lambda *_: 0),
            mock.patch.object(_foreach_utils, "_foreach_supported_types", [Tensor, FakeTensor, torch.nn.Parameter]),
        ):
            stack.enter_context(patch)
        stack.enter_context(_WithIndex())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(FakeCuda())


def to_fake(model: torch.nn.Module) -> torch.nn.Module:
    """Move a model of the host to the fake device; shared tensors stay shared."""
    moved: dict[int, Any] = {}

    def move(x: Tensor) -> Tensor:
        if id(x) not in moved:
            moved[id(x)] = torch.empty(x.shape, dtype=x.dtype, device=CUDA)
            if isinstance(x, torch.nn.Parameter):
                moved[id(x)] = torch.nn.Parameter(moved[id(x)], x.requires_grad)
        return moved[id(x)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: move(x) for name, x in tensors.items() if x is not None})
    return model
