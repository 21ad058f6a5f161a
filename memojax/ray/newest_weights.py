"""The newest weights of a Serve deployment, which replicas that start later begin with."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import time
from collections.abc import Awaitable
from typing import Any

import jax
import numpy as np

log: logging.Logger = logging.getLogger("memojax")

_PATIENCE_S = 20.0
"""Seconds that a running replica waits for the keeper; without an answer it asks again at its next check.

By default, Serve replaces a replica whose check takes 30 seconds.
"""


def keeper_class() -> type[Any]:
    """The class of the deployment that keeps the newest weights.

    Ray pickles a class of a function by value, so the keeper's process imports neither memojax nor JAX.
    """

    class Keeper:
        """Keeps packed weights; of two updates, the one with the later stamp wins."""

        def __init__(self, identity: str):
            self._identity = identity
            self._stamp, self._digest, self._weights = 0, "", b""

        async def newest(self, identity: str) -> tuple[int, str]:
            """Stamp and digest of the newest weights; 0 and "" before the first update."""
            # Replicas of an older deployment of this name may still ask during a roll-out.
            return (self._stamp, self._digest) if identity == self._identity else (0, "")

        async def weights(self) -> bytes:
            """The newest weights."""
            return self._weights

        async def keep(self, identity: str, stamp: int, digest: str, weights: bytes | None) -> None:
            """Keep `weights` (None: those with this digest, which are here) unless newer ones are here."""
            if identity != self._identity or stamp < self._stamp:
                return
            if weights is not None:
                self._weights = weights
            elif digest != self._digest:
                return
            self._stamp, self._digest = stamp, digest

        async def stats(self) -> dict[str, Any]:
            """Process id, and stamp of the newest weights."""
            return {"pid": os.getpid(), "stamp": self._stamp}

    return Keeper


class NewestWeights:
    """A replica's side: it tells the keeper of updates, and takes the ones it has missed."""

    def __init__(self, policy: Any, keeper: Any, identity: str):
        """`keeper` is the handle of the deployment of `keeper_class`."""
        self._policy, self._keeper, self._identity = policy, keeper, identity
        self._stamp, self._digest = 0, ""
        self._started = False
        self._turns = asyncio.Lock()

    async def update(self, source: Any) -> None:
        """Update the policy with `source`, and tell the keeper."""
        async with self._turns:
            await asyncio.to_thread(self._policy.update_params, source)
            packed = await asyncio.to_thread(_packed, self._policy.params)
            self._stamp, self._digest = time.time_ns(), _digest(packed)
            try:
                await _patient(self._tell(packed))
            except Exception as cause:  # The next `follow` tells it again.
                log.warning("the keeper of the newest weights does not answer (%r)", cause)

    async def follow(self) -> None:
        """Take newer weights from the keeper, or tell a keeper that has lost them.

        Errors raise only before the first answer, because a replica must not start with old weights.
        """
        async with self._turns:
            if not self._started:
                await self._follow()
                self._started = True
                return
            try:
                await _patient(self._follow())
            except Exception as cause:
                log.warning("the keeper of the newest weights does not answer (%r)", cause)

    async def _follow(self) -> None:
        stamp, digest = await self._keeper.newest.remote(self._identity)
        if stamp < self._stamp:
            await self._tell(await asyncio.to_thread(_packed, self._policy.params))
        elif digest == self._digest:
            self._stamp = stamp
        else:
            packed = await self._keeper.weights.remote()
            await asyncio.to_thread(lambda: self._policy.update_params(pickle.loads(packed)))
            self._stamp, self._digest = stamp, _digest(packed)

    async def _tell(self, packed: bytes) -> None:
        _, known = await self._keeper.newest.remote(self._identity)
        body = None if known == self._digest else packed
        await self._keeper.keep.remote(self._identity, self._stamp, self._digest, body)


async def _patient(call: Awaitable[None]) -> None:
    await asyncio.wait_for(call, _PATIENCE_S)


def _packed(params: Any) -> bytes:
    return pickle.dumps(jax.tree.map(np.asarray, params))


def _digest(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()
