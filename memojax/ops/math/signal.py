"""Fourier transforms, windows and the mel matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ...model.tensor import dtype_of
from .._common import cast, checked_shape, normalize_axis, scalar, traced
from ..registry import op


@op("BlackmanWindow", since=17, static=("size",))
def blackman_window(size, *, output_datatype=1, periodic=1):
    """`0.42 - 0.5 cos(angle) + 0.08 cos(2 angle)`.

    https://onnx.ai/onnx/operators/onnx__BlackmanWindow.html
    """
    return _window((0.42, -0.5, 0.08), size, output_datatype, periodic)


@op("HammingWindow", since=17, static=("size",))
def hamming_window(size, *, output_datatype=1, periodic=1):
    """`25/46 - 21/46 cos(angle)`. https://onnx.ai/onnx/operators/onnx__HammingWindow.html"""
    return _window((25 / 46, -21 / 46), size, output_datatype, periodic)


@op("HannWindow", since=17, static=("size",))
def hann_window(size, *, output_datatype=1, periodic=1):
    """`0.5 - 0.5 cos(angle)`. https://onnx.ai/onnx/operators/onnx__HannWindow.html"""
    return _window((0.5, -0.5), size, output_datatype, periodic)


def _window(coefficients, size, output_datatype, periodic):
    (n,) = checked_shape((scalar(size),), 32)
    angle = 2 * np.pi * np.arange(n) / (n if periodic else n - 1)
    return cast(
        sum(factor * np.cos(k * angle) for k, factor in enumerate(coefficients)), dtype_of(output_datatype)
    )


@op("DFT", since=17, until=20, static=("dft_length",))
def dft_with_axis_attribute(input, dft_length=None, *, axis=1, inverse=0, onesided=0):
    """Before opset 20 the axis is an attribute. https://onnx.ai/onnx/operators/onnx__DFT.html"""
    return dft(input, dft_length, np.array(axis), inverse=inverse, onesided=onesided)


@op("DFT", since=20, static=("dft_length", "axis"))
def dft(input, dft_length=None, axis=None, *, inverse=0, onesided=0):
    """Fourier transform along `axis`; the last axis holds real and imaginary parts.

    https://onnx.ai/onnx/operators/onnx__DFT.html
    """
    axis = normalize_axis(-2 if axis is None else scalar(axis), input.ndim)
    length = None if dft_length is None else scalar(dft_length)
    signal = _complex(input)
    if inverse and onesided:
        return cast(jnp.fft.irfft(signal, length, axis), input.dtype)[..., None]
    return _parts(
        _forward(signal, length, axis, onesided) if not inverse else jnp.fft.ifft(signal, length, axis),
        input.dtype,
    )


@op(
    "MelWeightMatrix",
    since=17,
    static=("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"),
)
def mel_weight_matrix(
    num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz, *, output_datatype=1
):
    """Weights `[dft_length // 2 + 1, num_mel_bins]`: a triangle over the bins of the DFT for each mel band.

    The bands are `(upper - lower) / (num_mel_bins + 2)` mel apart, as in ONNX's reference and ONNX Runtime;
    the specification does not define it.

    https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html
    """
    bands, length = scalar(num_mel_bins), scalar(dft_length)
    spectrum, _ = checked_shape((length // 2 + 1, bands + 2), 40)
    low, high = (
        2595 * np.log10(1 + float(scalar(edge)) / 700) for edge in (lower_edge_hertz, upper_edge_hertz)
    )
    mels = low + np.arange(bands + 2) * (high - low) / (bands + 2)
    bins = (length + 1) * 700 * (10 ** (mels / 2595) - 1) // scalar(sample_rate)
    left, center, right = bins[:-2], bins[1:-1], bins[2:]
    row = np.arange(spectrum)[:, None]
    rising = np.where(center > left, (row - left) / np.maximum(center - left, 1), row >= center)
    falling = np.where(right > center, (right - row) / np.maximum(right - center, 1), row <= center)
    return cast(np.maximum(np.minimum(rising, falling), 0), dtype_of(output_datatype))


@op("STFT", since=17, static=("frame_step", "frame_length"))
def stft(signal, frame_step, window=None, frame_length=None, *, onesided=1):
    """Fourier transforms of windowed frames, `frame_step` apart.

    https://onnx.ai/onnx/operators/onnx__STFT.html
    """
    whole = signal.shape[1] if window is None else window.shape[0]
    length, step = whole if frame_length is None else scalar(frame_length), scalar(frame_step)
    if not 0 < length <= signal.shape[1] or step <= 0:
        raise ValueError(
            f"frame_length {length} and frame_step {step} do not fit a signal of length {signal.shape[1]}"
        )
    starts = np.arange(0, signal.shape[1] - length + 1, step)
    frames = _complex(signal)[:, starts[:, None] + np.arange(length)]
    if window is not None:
        frames = frames * cast(window, _wide(window.dtype))
    return _parts(_forward(frames, length, 2, onesided), signal.dtype)


def _wide(dtype):
    return np.float64 if dtype == np.float64 else np.float32


def _complex(x):
    """The complex signal whose parts are the last axis of `x`; half types widen, as XLA's FFT has none."""
    x = traced(cast(x, _wide(x.dtype)))
    return x[..., 0] if x.shape[-1] == 1 else jax.lax.complex(x[..., 0], x[..., 1])


def _forward(signal, length, axis, onesided):
    if onesided and jnp.iscomplexobj(signal):
        raise ValueError("onesided needs a real signal (last axis of length 1), but this signal is complex")
    return (jnp.fft.rfft if onesided else jnp.fft.fft)(signal, length, axis)


def _parts(spectrum, dtype):
    return cast(jnp.stack([spectrum.real, spectrum.imag], -1), dtype)
