"""Batch sizes that get a plan: every size, or a few to which others are padded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from .._argument_checks import as_count
from ..errors import BatchSizeError

Bucketing: TypeAlias = Literal["exact", "pow2"] | Iterable[int] | Callable[[int], int]
Bucket: TypeAlias = Callable[[int], int]
"""Number of rows -> size of the plan that runs them; a smaller size means that the rows are split."""


def bucket_of(policy: Bucketing, max_batch_size: int | None = None) -> Bucket:
    """The function from rows to plan size, for a user's choice.

    Args:
        policy: "exact" (each size has its own plan), "pow2" (the next power of two), a list of sizes (the
            next larger one; rows beyond the largest are split), or a function of the number of rows.
        max_batch_size: upper limit of rows in one plan. It is always a plan size, so a full batch is never
            padded.

    Raises:
        BatchSizeError: an unknown policy, or a size that is not a positive whole number.
    """
    limit = None if max_batch_size is None else checked_size(max_batch_size)
    if callable(policy):
        return lambda n: _limited(_answer(policy, n), limit)
    if policy == "exact":
        return lambda n: _limited(n, limit)
    if policy == "pow2":
        return lambda n: _limited(1 << (n - 1).bit_length(), limit)
    if isinstance(policy, str):
        raise BatchSizeError(
            f"unknown bucketing {policy!r}: pass 'exact', 'pow2', a list of sizes, or a function"
        )
    sizes = sorted({checked_size(size) for size in policy} | ({limit} if limit else set()))
    if not sizes:
        raise BatchSizeError("bucketing= needs at least one size")
    return lambda n: next((size for size in sizes if size >= n), sizes[-1])


def is_exact(policy: Bucketing, max_batch_size: int | None = None) -> bool:
    """Whether each size has its own plan, so that rows are neither padded nor split."""
    return isinstance(policy, str) and policy == "exact" and max_batch_size is None


def _limited(size: int, limit: int | None) -> int:
    return size if limit is None else min(size, limit)


def _answer(policy: Callable[[int], int], n: int) -> int:
    size = checked_size(policy(n))
    if size < n:
        raise BatchSizeError(
            f"the bucketing function gave {size} for {n} rows: it must give {n} or more "
            "(max_batch_size= splits batches)"
        )
    return size


def checked_size(size: int) -> int:
    """Convert `size` to an int.

    Raises:
        BatchSizeError: `size` is not a positive whole number.
    """
    return as_count("a batch size", size, BatchSizeError)
