"""Vision modules whose weights stay on disk: traced by shape alone, run one tensor at a time. Imports torch.

with WithoutMemory():                                    # models.lazy_parameters
    modules = load_vision(checkpoint)
with StreamedWeights(modules.tower) as weights:
    with weights.read_as_needed():
        features = modules.tower.features(tiles)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from export.decoder.safetensors_file import SafetensorsFile
from export.vision.weights import StoredWeight
from runtime.errors import ExportError


class StreamedWeights:
    """The weights of a module that was loaded inside ``models.lazy_parameters.WithoutMemory``, by parameter name.

    Puts fake parameters (torch's FakeTensor on the CPU) into the module, so that it can be exported; a context manager
    that closes the files. Raises ExportError for a parameter that no file has.
    """

    def __init__(self, module: nn.Module) -> None:
        self.stored: dict[str, StoredWeight] = {}
        self._of: dict[int, StoredWeight] = {}
        self._parameters: list[nn.Parameter] = []  # kept, so that no other object gets their id
        files: dict[Path, SafetensorsFile] = {}
        with ExitStack() as stack, FakeTensorMode():
            for prefix, owner in module.named_modules():
                for name, parameter in list(owner.named_parameters(recurse=False)):
                    if parameter.is_meta:
                        full = f"{prefix}.{name}" if prefix else name
                        self._adopt(full, parameter, files, stack)
                        setattr(owner, name, self._parameters[-1])
            self._files = stack.pop_all()

    def __enter__(self) -> StreamedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _adopt(self, full: str, parameter: Any, files: dict[Path, SafetensorsFile], stack: ExitStack) -> None:
        if not hasattr(parameter, "stored_in"):
            raise ExportError(f"the checkpoint has no values for {full!r}", hint="copy the checkpoint again")
        path, name = parameter.stored_in
        if path not in files:
            files[path] = stack.enter_context(SafetensorsFile(path))
        fake = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=False)
        self._parameters.append(fake)
        self.stored[full] = self._of[id(fake)] = StoredWeight(files[path], name)

    def read_as_needed(self) -> TorchFunctionMode:
        """Inside it each operator reads the weights that it uses, and they are gone after it."""
        return _Reading(self._of)


class _Reading(TorchFunctionMode):
    def __init__(self, weights: dict[int, StoredWeight]) -> None:
        super().__init__()
        self._weights = weights

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":  # dtype, device, shape: no values needed
            return func(*args, **kwargs)
        return func(*self._real(args), **{name: self._real(value) for name, value in kwargs.items()})

    def _real(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            return type(value)(self._real(item) for item in value)
        weight = self._weights.get(id(value)) if isinstance(value, Tensor) else None
        return value if weight is None else torch.from_numpy(weight.values())
