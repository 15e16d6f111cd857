"""Whether the variable-length operators work on a device, by trying them. No release of torch promises them."""

from functools import cache

import torch

from minipeft.errors import first_line, logger
from minipeft.model.attention.grouped import attend_grouped, group_by_length
from minipeft.model.attention.varlen import Varlen, attend_varlen

LENGTHS = [5, 1, 9]  # of the sequences that are tried
NUM_HEADS = 2


@cache
def varlen_agrees(
    device: torch.device, dtype: torch.dtype, head_size: int, in_window: bool = False, with_dropout: bool = False
) -> bool:
    """Whether `attend_varlen` gives the same as the groups on a device; tried once. A failure is logged."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            problem = _compare_with_groups(device, dtype, head_size, in_window)
            if with_dropout and not problem:
                problem = _check_dropout(device, dtype, head_size, in_window)
    except Exception as error:  # an operator or an argument that a release lacks, a kernel that a GPU lacks, …
        problem = first_line(error)
    if problem:
        kind = "variable-length attention" + " in windows" * in_window + " with dropout" * with_dropout
        logger.warning("%s in %s: no %s (%s); slower groups instead", device, dtype, kind, problem)
    return not problem


def _compare_with_groups(device: torch.device, dtype: torch.dtype, head_size: int, in_window: bool) -> str:
    """Return by how much outputs and gradients differ from those of the groups; empty if they agree."""
    window = 2 if in_window else None
    generator = torch.Generator().manual_seed(0)
    rounded = torch.randn(3, sum(LENGTHS), NUM_HEADS * head_size, generator=generator).to(device, dtype)
    # The groups compute in float32, so that only one side rounds.
    qkv, exact_qkv = rounded.clone().requires_grad_(), rounded.float().requires_grad_()
    q, k, v = qkv
    output = attend_varlen(q, k, v, _plan(device, window), NUM_HEADS).float()
    q, k, v = exact_qkv
    exact = attend_grouped(q, k, v, group_by_length(LENGTHS, device, torch.float32, window), NUM_HEADS)
    (grad,) = torch.autograd.grad(output.square().sum(), qkv)
    (exact_grad,) = torch.autograd.grad(exact.square().sum(), exact_qkv)
    found, expected = (torch.cat([o.detach()[None], g.float()]) for o, g in ((output, grad), (exact, exact_grad)))
    difference = float((found - expected).abs().max() / expected.abs().max())
    # bfloat16 rounds to 0.007 of the largest number here. Scores that are a tenth too large, or sequences that see each
    # other, make 0.1 and more.
    agrees = difference <= (1e-3 if dtype == torch.float32 else 0.03)  # NaN does not
    return "" if agrees else f"the result differs by {difference}"


def _check_dropout(device: torch.device, dtype: torch.dtype, head_size: int, in_window: bool) -> str:
    """Return what is wrong with dropout of the attention weights; empty if nothing is."""
    probability, tokens = 0.5, sum(LENGTHS)
    query = torch.zeros(tokens, NUM_HEADS * head_size, dtype=dtype, device=device)
    value = torch.ones_like(query).requires_grad_()
    plan = _plan(device, max(LENGTHS) if in_window else None)
    output = attend_varlen(query, query, value, plan, NUM_HEADS, probability).float()
    (grad,) = torch.autograd.grad(output.sum(), value)
    # All scores are 0 and all values 1: an output is the number of weights that are kept, over length · (1 − p).
    lengths = torch.tensor(LENGTHS, device=device)
    seen = lengths.repeat_interleave(lengths)[:, None]  # (tokens, 1), keys of each query
    kept = output.detach() * seen * (1 - probability)
    some = (kept > 0.5) & (kept < seen - 0.5)
    if not float((kept - kept.round()).abs().max()) < 0.1 or not bool(some.any()):
        return "dropout does not set single weights to 0"
    # The backward pass must drop the same weights, so that their sum is the same.
    if not float((grad.float().sum() - output.detach().sum()).abs()) < 0.02 * output.numel():
        return "dropout differs between the forward and the backward pass"
    return ""


def _plan(device: torch.device, window: int | None) -> Varlen:
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).to(device, torch.int32)
    first = torch.arange(len(LENGTHS) + 1, dtype=torch.int32, device=device)
    return Varlen(cu_seqlens, cu_seqlens, first, max(LENGTHS), max(LENGTHS), window=window)
