"""Small IDX files, as the MNIST data set has them, for the tests of the command line."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049


def idx_bytes(magic: int, array: np.ndarray) -> bytes:
    """Header (magic, one int32 a dimension, big-endian) and bytes."""
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def write_digits(
    folder: Path, train: int = 48, test: int = 24, mark: str = "-", compressed: bool = False
) -> None:
    """The four files, with random images of ten classes in which a class has a bright row of its own."""
    random = np.random.default_rng(0)
    for part, size in (("train", train), ("t10k", test)):
        labels = np.arange(size) % 10
        images = random.integers(0, 100, (size, 28, 28))
        images[np.arange(size), 2 * labels + 4] = 255
        files = (
            (f"{part}-images{mark}idx3-ubyte", IMAGES_MAGIC, images),
            (f"{part}-labels{mark}idx1-ubyte", LABELS_MAGIC, labels),
        )
        for name, magic, array in files:
            content = idx_bytes(magic, array)
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
