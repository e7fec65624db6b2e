"""Reading digits: the IDX files in every form they come in, what is wrong with others, the fixed split."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import IMAGES_MAGIC, LABELS_MAGIC, idx_bytes, write_digits

from datagrad_ext.cli.data import Digits, load_digits
from datagrad_ext.cli.errors import UserError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture(scope="module")
def bundled() -> Digits:
    return load_digits(None)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_in_every_form(tmp_path: Path, mark: str, compressed: bool) -> None:
    write_digits(tmp_path, mark=mark, compressed=compressed)
    digits = load_digits(tmp_path)
    assert digits.train_images.shape == (48, 1, 28, 28)
    assert digits.test_images.shape == (24, 1, 28, 28)
    assert digits.train_images.dtype == torch.float32
    assert digits.train_labels.tolist() == [n % 10 for n in range(48)]
    assert (digits.train_images[0, 0, 4] == 1).all()
    assert digits.train_images.min() >= 0


def _replace(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


ZEROS = np.zeros((48, 28, 28))
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is missing": (
        lambda folder: (folder / LABELS).unlink(),
        "no file train-labels-idx1-ubyte (looked for train-labels-idx1-ubyte, train-labels-idx1-ubyte.gz",
    ),
    "labels where images should be": (
        _replace(IMAGES, idx_bytes(LABELS_MAGIC, ZEROS)),
        f"{IMAGES}: magic number 2051 (unsigned bytes, 3-d) expected, found 2049",
    ),
    "not an IDX file": (
        _replace(LABELS, b"hello, digits"),
        "magic number 2049 (unsigned bytes, 1-d) expected",
    ),
    "no header": (_replace(LABELS, b"\x00"), "an IDX header of 8 bytes expected, the file holds 1"),
    "truncated": (_cut(IMAGES), "promises 48 x 28 x 28 = 37,632 bytes, the file holds 37,532"),
    "truncated gzip": (_replace(LABELS, gzip.compress(bytes(100))[:-9]), f"{LABELS}: cannot be read"),
    "damaged gzip": (_replace(LABELS, b"\x1f\x8b\x08" + bytes(40)), f"{LABELS}: cannot be read"),
    "too few labels": (
        _replace(LABELS, idx_bytes(LABELS_MAGIC, np.zeros(47))),
        f"48 labels expected, one for each image of {IMAGES}, found 47",
    ),
    "a label above 9": (
        _replace(LABELS, idx_bytes(LABELS_MAGIC, np.arange(48))),
        "labels 0 to 9 expected, found 47",
    ),
    "images of another size": (
        _replace(IMAGES, idx_bytes(IMAGES_MAGIC, np.zeros((48, 32, 32)))),
        "images of 28 x 28 pixels expected, found 32 x 32",
    ),
    "no images": (
        lambda folder: (
            (folder / IMAGES).write_bytes(idx_bytes(IMAGES_MAGIC, np.zeros((0, 28, 28)))),
            (folder / LABELS).write_bytes(idx_bytes(LABELS_MAGIC, np.zeros(0))),
        ),
        "at least one image expected, found none",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_wrong_file_is_named_with_what_was_expected(
    tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    write_digits(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        load_digits(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        load_digits(tmp_path / "nowhere")


def test_the_bundled_digits_are_split_evenly_and_scaled(bundled: Digits) -> None:
    assert torch.bincount(bundled.train_labels).tolist() == [400] * 10
    assert torch.bincount(bundled.test_labels).tolist() == [100] * 10
    for images in (bundled.train_images, bundled.test_images):
        assert images.shape[1:] == (1, 28, 28)
        assert (images.min(), images.max()) == (0, 1)


def test_the_split_never_changes(bundled: Digits) -> None:
    weights = torch.arange(1, 1001, dtype=torch.float64)
    pixel_sums = (255 * bundled.test_images.double()).sum((1, 2, 3)).round()
    assert (pixel_sums @ weights).item() == 13047880844


def test_no_image_is_in_two_parts(bundled: Digits) -> None:
    inner = bundled.held_out()
    assert (len(inner.train_labels), len(inner.test_labels), inner.test_name) == (3200, 800, "validation")
    parts = [
        {image.numpy().tobytes() for image in part}
        for part in (inner.train_images, inner.test_images, bundled.test_images)
    ]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 5000
