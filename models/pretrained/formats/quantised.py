"""Dequantises tensors of safetensors files when they are read.

Exports write unquantised tensors: values are kept (those of MXFP4 even in bfloat16), the format and size of the file
are not. Activations are not quantised, though fp8 files ask for it.

Legend: E experts, D in, O out of a matrix product.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from documents import read_settings
from errors import UsageError
from models.pretrained.formats.safetensors import TensorReader

FOUR_BITS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
BLOCK = (128, 128)  # of fp8, if config.json gives none


@dataclass(frozen=True)
class QuantisedTensor:
    """A quantised tensor: its format, the names of its values and scales, and its dequantised shape."""

    form: str  # mxfp4 | fp8 | int8
    values: str
    scales: str
    shape: tuple[int, ...]


class DequantisingReader(TensorReader):
    """The tensors of a folder or a file, with quantised ones dequantised to float32.

    - MXFP4: `X_blocks` uint8 [E O D/32 16], two numbers of 4 bits per byte, the lower first, and `X_scales` uint8
      [E O D/32], powers of two: X [E D O]. Source: Open Compute Project 2023, Microscaling Formats 1.0, section 5.
    - fp8: `X` of 8 bits [O D] and `X_scale_inv` float32, one for each block of `quantization_config.weight_block_size`.
      Source: DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2.
    - int8: `X.weight` of 8 bits and `X.scales`, of as many dims, each of which divides that of the weight: X.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the headers. Raises UsageError as TensorReader does, and for scales that are missing or misshapen."""
        super().__init__(path)
        self.block = _block_size(self.path)
        self.quantised = {name: pair for name, pair in map(self._quantised_tensor, list(self.shapes)) if pair}
        for name, pair in self.quantised.items():
            for part in (pair.values, pair.scales):
                self.shapes.pop(part)
            self.shapes[name] = pair.shape

    def read(self, name: str) -> np.ndarray:
        """One tensor; a quantised one as float32. Raises UsageError for a dtype that is not of parameters."""
        if name not in self.quantised:
            return super().read(name)
        tensor = self.quantised[name]
        values, scales = self.raw(tensor.values), self.raw(tensor.scales)
        if tensor.form == "mxfp4":
            return _dequantise_mxfp4(values, scales)
        block = self._block_shape(tensor, scales)
        return values.astype(np.float32) * _expand_scales(scales.astype(np.float32), tensor.shape, block)

    def _quantised_tensor(self, name: str) -> tuple[str, QuantisedTensor | None]:
        """The dequantised tensor's name, and its QuantisedTensor; None for tensors that are not quantised values."""
        shape, dtype = self.shapes[name], self.dtypes[name]
        if dtype == "U8" and name.endswith("_blocks"):
            plain = name.removesuffix("_blocks")
            form = "mxfp4"
            scales = f"{plain}_scales"
            plain_shape = (*shape[:-3], 2 * shape[-2] * shape[-1], shape[-3])
        elif dtype == "F8_E4M3":
            plain = name
            scales = f"{name}_scale_inv"
            plain_shape = shape
            form = "fp8"
        elif dtype == "I8" and name.endswith(".weight"):
            plain = name.removesuffix(".weight")
            form = "int8"
            scales = f"{plain}.scales"
            plain_shape = shape
        else:
            return name, None
        scales_shape = self.shapes.get(scales)
        kinds = ("U8",) if form == "mxfp4" else ("F32", "BF16", "F16")
        if scales_shape is not None and self.dtypes[scales] not in kinds:
            raise UsageError(
                f"scales {scales!r} of {self.path} are of {self.dtypes[scales]}; legal: {', '.join(kinds)}"
            )
        if plain != name and plain in self.shapes:
            raise UsageError(f"{self.path} has tensor {plain!r} both unquantised and as {form}, {name!r}")
        if form == "mxfp4":
            fits = len(shape) == 4 and shape[-1] == 16 and scales_shape == shape[:-1]
        elif form == "fp8":
            blocks = tuple(-(-n // b) for n, b in zip(shape, self.block, strict=False))
            fits = len(shape) == 2 and scales_shape == blocks
        else:
            fits = bool(scales_shape) and len(scales_shape or ()) == len(shape)
            fits = fits and not any(n % m for n, m in zip(shape, scales_shape or (), strict=True))
        if not fits:
            given = "no scales" if scales_shape is None else f"scales of shape {scales_shape}"
            raise UsageError(f"tensor {name!r} of {self.path} is {form} of shape {shape}, with {given} in {scales!r}")
        return plain, QuantisedTensor(form, name, scales, plain_shape)

    def _block_shape(self, tensor: QuantisedTensor, scales: np.ndarray) -> tuple[int, ...]:
        """The shape of the blocks that share a scale."""
        if tensor.form == "fp8":
            return self.block
        return tuple(n // m for n, m in zip(tensor.shape, scales.shape, strict=True))


def _dequantise_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """MXFP4: blocks [E O J 16], scales [E O J] -> [E D O], D = 32 J."""
    pairs = np.stack([FOUR_BITS[blocks & 15], FOUR_BITS[blocks >> 4]], -1)
    if (scales == 255).any():
        raise UsageError("scales of MXFP4 contain 255, which is nan")
    numbers = np.ldexp(pairs.reshape(*blocks.shape[:-1], 32), scales[..., None].astype(np.int32) - 127)
    return numbers.reshape(*blocks.shape[:-2], -1).swapaxes(-1, -2)


def _expand_scales(scales: np.ndarray, shape: tuple[int, ...], block: tuple[int, ...]) -> np.ndarray:
    """Each scale repeated over its block, cut to `shape`: the last blocks may be partial."""
    for axis, count in enumerate(block):
        if scales.shape[axis] != 1:
            scales = np.repeat(scales, count, axis)
    return scales[tuple(slice(n) for n in shape)]


def _block_size(path: Path) -> tuple[int, int]:
    """The block size of fp8: config.json's, if there is one beside the files, else BLOCK. Raises UsageError."""
    file = path / "config.json"
    if not file.is_file():
        return BLOCK
    settings = read_settings(file).get("quantization_config")
    size = (settings.get("weight_block_size") if isinstance(settings, dict) else None) or BLOCK
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise UsageError(f"{file} has weight_block_size = {size!r}; it must be two positive integers")
    return size[0], size[1]
