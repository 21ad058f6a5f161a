"""Noise generators, and wrappers that feed noise to a policy that has it as an input."""

from __future__ import annotations

import abc
from typing import final

import jax.numpy as jnp
import numpy as np

from ..errors import IncompatibleModelError, InputDtypeError
from ..inferer.base import Inferer, check_inferer
from ..model.signature import ModelApi
from ..rows.input_checks import check_names
from ..rows.scratch import ScratchPadView
from .base import BaseWrapper, InfererWrapper, LayeredInferer


class NoiseGenerator(abc.ABC):
    """A source of noise; threads may share it.

    >>> class Uniform(memojax.NoiseGenerator):
    ...     def generate(self, out):
    ...         out[...] = np.random.default_rng(0).uniform(-1, 1, out.shape)
    >>> policy = memojax.load(memojax.policies.bundled("pendulum_ppo")).with_epsilon(Uniform(), "epsilon")
    >>> policy.infer_single({"obs": np.zeros(3)})["action"].shape
    (1,)
    """

    @abc.abstractmethod
    def generate(self, out: np.ndarray) -> None:
        """Fill `out`, which is C-contiguous, in place."""


@final
class HighQualityNoiseGenerator(NoiseGenerator):
    """Standard normal noise from PCG64, NumPy's default.

    >>> noise = np.empty((1000, 2), np.float32)
    >>> memojax.HighQualityNoiseGenerator(seed=0).generate(noise)
    >>> bool(abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1)
    True
    """

    def __init__(self, seed: int | None = None):
        """Start from `seed`; None takes the system's entropy."""
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def generate(self, out: np.ndarray) -> None:
        _fill_normal(self._rng, out)


@final
class LowQualityNoiseGenerator(NoiseGenerator):
    """Standard normal noise from SFC64, which is faster but has no proven period.

    >>> noise = np.empty((1000, 2), np.float32)
    >>> memojax.LowQualityNoiseGenerator(seed=0).generate(noise)
    >>> bool(abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1)
    True
    """

    def __init__(self, seed: int | None = None):
        """Start from `seed`; None takes the system's entropy."""
        self._rng = np.random.Generator(np.random.SFC64(seed))

    def generate(self, out: np.ndarray) -> None:
        _fill_normal(self._rng, out)


@final
class ConstantGenerator(NoiseGenerator):
    """No noise: the same value everywhere. Zeros make a stochastic policy deterministic.

    >>> noise = np.empty(3, np.float32)
    >>> memojax.ConstantGenerator.zeros().generate(noise)
    >>> noise
    array([0., 0., 0.], dtype=float32)
    """

    def __init__(self, value: float):
        """Fill with `value`."""
        self.value = value

    @classmethod
    def zeros(cls) -> ConstantGenerator:
        """A generator of zeros."""
        return cls(0.0)

    @classmethod
    def ones(cls) -> ConstantGenerator:
        """A generator of ones."""
        return cls(1.0)

    def generate(self, out: np.ndarray) -> None:
        out.fill(self.value)


@final
class EpsilonInjectorWrapper(InfererWrapper):
    """Fills one input with noise; stack it around an inferer that you want to swap later.

    >>> policy = memojax.load(memojax.policies.bundled("pendulum_ppo"))
    >>> stack = memojax.EpsilonInjectorWrapper(memojax.BaseWrapper(), policy, "epsilon")
    >>> policy.into_stateful(stack).infer_single({"obs": np.zeros(3)})["action"].shape
    (1,)
    """

    def __init__(
        self, inner: InfererWrapper, inferer: Inferer, key: str, generator: NoiseGenerator | None = None
    ):
        """Fill the input `key` of `inferer` from `generator`, outside of the wrapper `inner`.

        The default generator is `HighQualityNoiseGenerator`.

        Raises:
            UnknownInputError: the model has no input `key`, or `inner` hides it.
        """
        check_inferer(inferer)
        self.key = key
        self.generator: NoiseGenerator | HighQualityNoiseGenerator = generator or HighQualityNoiseGenerator()
        self._inner = inner
        names = [spec.name for spec in inner.api(inferer).inputs]
        check_names(names, [key], optional=names)
        self._slot = next(slot for slot, spec in enumerate(inferer.raw_api.inputs) if spec.name == key)
        self._spec = inferer.raw_api.inputs[self._slot]
        self._seen: tuple[ModelApi, ModelApi] | None = None

    def __repr__(self) -> str:
        return f"EpsilonInjectorWrapper({self._inner!r}, {self.key!r}, {type(self.generator).__name__})"

    def api(self, inferer: Inferer) -> ModelApi:
        around = self._inner.api(inferer)
        if self._seen is None or self._seen[0] is not around:
            if self._spec not in around.inputs or inferer.raw_api.inputs.index(self._spec) != self._slot:
                raise IncompatibleModelError(
                    f"this wrapper fills input {self._spec}, but the inferer has {around}: make a new wrapper"
                )
            self._seen = around, around.without(inputs=[self.key])
        return self._seen[1]

    def invoke(self, inferer: Inferer, view: ScratchPadView) -> None:
        self.generator.generate(view.input_slot_mut(self._slot))
        self._inner.invoke(inferer, view)

    def begin_agent(self, inferer: Inferer, agent: int) -> None:
        self._inner.begin_agent(inferer, agent)

    def end_agent(self, inferer: Inferer, agent: int) -> None:
        self._inner.end_agent(inferer, agent)


@final
class EpsilonInjector(LayeredInferer):
    """Fills one input of the inferer that it owns with noise.

    Pick it for a policy exported with its noise as an input. If you want to swap the inferer later, use
    `EpsilonInjectorWrapper` instead.

    >>> policy = memojax.load(memojax.policies.bundled("pendulum_ppo"))
    >>> noisy = memojax.EpsilonInjector(policy, "epsilon", memojax.HighQualityNoiseGenerator(seed=0))
    >>> noisy.infer_single({"obs": np.zeros(3)})["action"].shape
    (1,)
    """

    def __init__(self, inferer: Inferer, key: str, generator: NoiseGenerator | None = None):
        """Fill the input `key` of `inferer` from `generator` (`HighQualityNoiseGenerator` by default).

        Raises:
            UnknownInputError: `inferer` has no input `key`.
        """
        super().__init__(EpsilonInjectorWrapper(BaseWrapper(), inferer, key, generator), inferer)

    @classmethod
    def wrap(cls, inferer: Inferer, key: str) -> EpsilonInjector:
        """Fill the input `key` with standard normal noise."""
        return cls(inferer, key)

    @classmethod
    def with_generator(cls, inferer: Inferer, generator: NoiseGenerator, key: str) -> EpsilonInjector:
        """Fill the input `key` from `generator`."""
        return cls(inferer, key, generator)


def _fill_normal(rng: np.random.Generator, out: np.ndarray) -> None:
    """Fill `out` in place. NumPy locks the bit generator, so threads may share `rng`."""
    if out.dtype in (np.float32, np.float64):
        rng.standard_normal(dtype=out.dtype, out=out)
    elif jnp.issubdtype(out.dtype, jnp.floating):
        out[...] = rng.standard_normal(out.shape, np.float32)
    else:
        raise InputDtypeError(
            f"normal noise cannot fill an input of {out.dtype}: use a ConstantGenerator, or write a "
            "NoiseGenerator"
        )
