"""Noise generators, and the wrappers that feed a policy from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from memojax import (
    BaseWrapper,
    ConstantGenerator,
    EpsilonInjector,
    EpsilonInjectorWrapper,
    HighQualityNoiseGenerator,
    Inferer,
    LowQualityNoiseGenerator,
    NoiseGenerator,
    RecurrentTracker,
)
from memojax.errors import (
    InputDtypeError,
    UnknownInputError,
)

from ..helpers import FakeInferer, echo, in_threads, noisy_echo, rows, summing


@pytest.mark.parametrize("make", [HighQualityNoiseGenerator, LowQualityNoiseGenerator])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_normal_noise(make: Callable[..., NoiseGenerator], dtype: Any) -> None:
    def draw(seed: int | None) -> np.ndarray:
        out = np.zeros((500, 40), dtype)
        make(seed).generate(out)
        return out.astype(np.float64)

    assert abs(draw(0).mean()) < 0.03
    assert abs(draw(0).std() - 1) < 0.03
    assert np.array_equal(draw(7), draw(7))
    assert not np.array_equal(draw(7), draw(8))
    assert not np.array_equal(draw(None), draw(None))


def test_the_two_qualities_are_two_generators() -> None:
    high, low = np.zeros(4, np.float32), np.zeros(4, np.float32)
    HighQualityNoiseGenerator(0).generate(high)
    LowQualityNoiseGenerator(0).generate(low)
    assert not np.array_equal(high, low)


@pytest.mark.parametrize(
    ("generator", "value"),
    [(ConstantGenerator.zeros(), 0), (ConstantGenerator.ones(), 1), (ConstantGenerator(2.5), 2.5)],
)
def test_constant_noise(generator: NoiseGenerator, value: float) -> None:
    out = np.full((2, 3), 9, np.float32)
    generator.generate(out)
    assert (out == value).all()


def test_normal_noise_is_not_for_integers() -> None:
    fake = FakeInferer(echo, inputs={"first": (1,), "epsilon": (1,)}, outputs={"out": (1,)}, dtype=np.int32)
    with pytest.raises(InputDtypeError, match="int32"):
        EpsilonInjector(fake, "epsilon").infer_single({"first": [1]})
    assert EpsilonInjector(fake, "epsilon", ConstantGenerator.ones()).infer_single({"first": [3]})["out"] == 3


def test_threads_share_a_generator() -> None:
    generator = HighQualityNoiseGenerator(0)

    def draw(_: int) -> list[float]:
        out = np.zeros(50, np.float32)
        generator.generate(out)
        return out.tolist()

    together = [value for part in in_threads(8, draw) for value in part]
    alone = np.zeros(400, np.float32)
    HighQualityNoiseGenerator(0).generate(alone)
    assert sorted(together) == sorted(alone.tolist())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inferer, generator: EpsilonInjector(inferer, "epsilon", generator),
        lambda inferer, generator: EpsilonInjector.with_generator(inferer, generator, "epsilon"),
        lambda inferer, generator: inferer.with_epsilon(generator, "epsilon"),
        lambda inferer, generator: inferer.into_stateful(
            EpsilonInjectorWrapper(BaseWrapper(), inferer, "epsilon", generator)
        ),
    ],
)
def test_noise_is_injected_and_its_input_hidden(wrap: Callable[..., Inferer]) -> None:
    fake = noisy_echo()
    noisy = wrap(fake, ConstantGenerator(0.5))
    assert noisy.input_shapes() == [("obs", [1])]
    assert noisy.raw_input_shapes() == fake.raw_input_shapes()
    assert noisy.output_shapes() == [("seen", [2])]
    assert noisy.infer_arrays({"obs": rows(1, 2, 3)})["seen"].tolist() == [[0.5, 0.5]] * 3
    assert noisy.infer_batch({4: {"obs": [1]}})[4]["seen"].tolist() == [0.5, 0.5]
    assert fake.sizes == [3, 1], "the model runs once per batch"
    for bad in ({"obs": rows(1), "epsilon": rows(1, 1).T}, {"epsilon": rows(1, 1).T}):
        with pytest.raises(UnknownInputError, match="epsilon"):
            noisy.infer_arrays(bad)


@pytest.mark.parametrize(
    "wrap", [EpsilonInjector.wrap, lambda inferer, key: inferer.with_default_epsilon(key)]
)
def test_noise_is_normal_by_default(wrap: Callable[[Inferer, str], Inferer]) -> None:
    seen = wrap(noisy_echo(), "epsilon").infer_arrays({"obs": np.zeros((2000, 1), np.float32)})["seen"]
    assert abs(seen.mean()) < 0.1
    assert abs(seen.std() - 1) < 0.1


def test_an_unknown_noise_input_is_named() -> None:
    with pytest.raises(UnknownInputError, match=r"'noise'.*'obs', 'epsilon'"):
        EpsilonInjector(noisy_echo(), "noise")
    tracker = RecurrentTracker.wrap(summing())
    with pytest.raises(UnknownInputError, match="h_in"):
        EpsilonInjector(tracker, "h_in")
