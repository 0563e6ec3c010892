"""Quantised tensors of safetensors files as the plain ones that they stand for, each made when it is asked for.

What is read here is written as plain numbers: every value is kept (those of MXFP4 even in bfloat16), the format and the
size of the file are not. That a runtime rounds activations too, as fp8 files ask for, is not followed.

Legend: E experts, D in, O out of a matrix product.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from documents import read_settings
from errors import UsageError
from models.pretrained.formats.safetensors import TensorReader

FOUR_BITS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
BLOCK = (128, 128)  # of fp8, where config.json says nothing


@dataclass(frozen=True)
class QuantisedTensor:
    """A quantised tensor: its form, the names of its numbers and of their scales, its shape as a plain one."""

    form: str  # mxfp4 | fp8 | int8
    values: str
    scales: str
    shape: tuple[int, ...]


class DequantisingReader(TensorReader):
    """The tensors of a folder or a file, those that are quantised made plain.

    - MXFP4: `X_blocks` uint8 [E O D/32 16], two numbers of 4 bits a byte, the lower first, and `X_scales` uint8
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
        """One tensor; a quantised one as float32 [...]. Raises UsageError for a dtype that no parameter has."""
        if name not in self.quantised:
            return super().read(name)
        pair = self.quantised[name]
        values, scales = self.raw(pair.values), self.raw(pair.scales)
        if pair.form == "mxfp4":
            return _dequantise_mxfp4(values, scales)
        return values.astype(np.float32) * _expand_scales(
            scales.astype(np.float32), pair.shape, self._block_shape(pair, scales)
        )

    def _quantised_tensor(self, name: str) -> tuple[str, QuantisedTensor | None]:
        """The plain name of quantised numbers, and what they consist of; None for other tensors."""
        shape, dtype = self.shapes[name], self.dtypes[name]
        if dtype == "U8" and name.endswith("_blocks"):
            plain, form = name.removesuffix("_blocks"), "mxfp4"
            scales, whole = f"{plain}_scales", (*shape[:-3], 2 * shape[-2] * shape[-1], shape[-3])
        elif dtype == "F8_E4M3":
            plain, scales, whole, form = name, f"{name}_scale_inv", shape, "fp8"
        elif dtype == "I8" and name.endswith(".weight"):
            plain, form = name.removesuffix(".weight"), "int8"
            scales, whole = f"{plain}.scales", shape
        else:
            return name, None
        have = self.shapes.get(scales)
        kinds = ("U8",) if form == "mxfp4" else ("F32", "BF16", "F16")
        if have is not None and self.dtypes[scales] not in kinds:
            said = f"{self.dtypes[scales]}; {' or '.join(kinds)} is known here"
            raise UsageError(f"scales {scales!r} of {self.path} are of {said}")
        if plain != name and plain in self.shapes:
            raise UsageError(f"{self.path} has the tensor {plain!r} both plain and as {form}, {name!r}")
        fits = {
            "mxfp4": lambda: len(shape) == 4 and shape[-1] == 16 and have == shape[:-1],
            "fp8": lambda: (
                len(shape) == 2 and have == tuple(-(-n // b) for n, b in zip(shape, self.block, strict=True))
            ),
            "int8": lambda: (
                have and len(have) == len(shape) and not any(n % m for n, m in zip(shape, have, strict=True))
            ),
        }
        if not fits[form]():
            says = "no scales" if have is None else f"scales of shape {have}"
            raise UsageError(f"tensor {name!r} of {self.path} is {form} of shape {shape}, with {says} in {scales!r}")
        return plain, QuantisedTensor(form, name, scales, whole)

    def _block_shape(self, pair: QuantisedTensor, scales: np.ndarray) -> tuple[int, ...]:
        """How many numbers along each dim share a scale."""
        if pair.form == "fp8":
            return self.block
        return tuple(n // m for n, m in zip(pair.shape, scales.shape, strict=True))


def _dequantise_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """MXFP4: blocks [E O J 16], scales [E O J] -> [E D O], D = 32 J."""
    pairs = np.stack([FOUR_BITS[blocks & 15], FOUR_BITS[blocks >> 4]], -1)
    if (scales == 255).any():
        raise UsageError("scales of MXFP4 hold 255, which stands for no number")
    numbers = np.ldexp(pairs.reshape(*blocks.shape[:-1], 32), scales[..., None].astype(np.int32) - 127)
    return numbers.reshape(*blocks.shape[:-2], -1).swapaxes(-1, -2)


def _expand_scales(scales: np.ndarray, shape: tuple[int, ...], cell: tuple[int, ...]) -> np.ndarray:
    """Each scale for all numbers of its cell; the last cells may be cut off."""
    for axis, count in enumerate(cell):
        if scales.shape[axis] != 1:
            scales = np.repeat(scales, count, axis)
    return scales[tuple(slice(n) for n in shape)]


def _block_size(path: Path) -> tuple[int, int]:
    """The size of fp8's blocks: config.json's, if there is one beside the files. Raises UsageError."""
    file = path / "config.json"
    if not file.is_file():
        return BLOCK
    told = read_settings(file).get("quantization_config")
    found = (told.get("weight_block_size") if isinstance(told, dict) else None) or BLOCK
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(type(n) is int and n > 0 for n in found):
        raise UsageError(f"{file} has weight_block_size = {found!r}, which is not two positive numbers")
    return found[0], found[1]
