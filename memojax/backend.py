"""ONNX's backend interface: `prepare`, `run_model`, `run_node`, `supports_device` for tools of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep

from .errors import DeviceError
from .lowering.oneshot import OneShot
from .xla.cpu_client import resolve_device


class MemojaxBackendRep(BackendRep):
    """A loaded model; each set of input shapes is compiled once, under jit."""

    def __init__(self, model: OneShot):
        self.model = model

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Outputs in the model's order; `inputs` is a sequence in that order, a mapping, or one array."""
        names = [value.name for value in self.model.model.graph.inputs]
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        named = dict(inputs) if isinstance(inputs, dict) else dict(zip(names, inputs, strict=False))
        outputs = self.model(named)
        return tuple(list(value) if isinstance(value, tuple) else value for value in outputs.values())


class MemojaxBackend(Backend):
    """Runs ONNX models as XLA executables."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> MemojaxBackendRep:
        """Load `model`.

        Raises:
            ModelLoadError: the model cannot be loaded.
            UnsupportedOpError: the model has operators that cannot be lowered.
            DeviceError: the machine has no such device.
        """
        return MemojaxBackendRep(OneShot(model, device=resolve_device(device.lower())))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Load a model and run it once."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run a single node on arrays; kwargs may hold `opset_version`."""
        given = [np.asarray(value) for value in inputs]
        named = [name for name in node.input if name]
        graph = helper.make_graph(
            [node],
            "node",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in zip(named, given, strict=True)
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        opset = kwargs.get("opset_version", min(onnx.defs.onnx_opset_version(), 24))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid(node.domain, opset)], ir_version=onnx.IR_VERSION
        )
        return cls.run_model(model, dict(zip(named, given, strict=True)), device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether `device` ("CPU", "CUDA", "CUDA:1") can be used."""
        try:
            resolve_device(device.lower())
        except DeviceError:
            return False
        return True


prepare: Callable[..., MemojaxBackendRep] = MemojaxBackend.prepare
run_model: Callable[..., tuple[Any, ...]] = MemojaxBackend.run_model
run_node: Callable[..., tuple[Any, ...]] = MemojaxBackend.run_node
supports_device: Callable[[str], bool] = MemojaxBackend.supports_device
