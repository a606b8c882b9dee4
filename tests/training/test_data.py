"""Data sets and their order: real files, folders of pictures, damaged and missing ones."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.errors import ConfigError, RepositoryError
from safelight.training.data import FashionMNIST, ImageFolder, ShuffledOrder, batches

from ..helpers.training import TinyPictures


def write_idx(path, array, packed=True):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_files(tmp_path, packed):
    pixels = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256
    ending = ".gz" if packed else ""
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{ending}", pixels, packed)
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{ending}", np.array([9, 3]), packed)
    data = FashionMNIST("test", tmp_path)
    batch = data.batch(torch.tensor([1, 0]))
    assert batch["class_labels"].tolist() == [3, 9]
    assert torch.equal(((batch["images"] + 1) * 127.5).round(), torch.from_numpy(pixels[[1, 0]]).float().unsqueeze(1))
    assert data.class_names[9] == "Ankle boot"


def test_fashion_mnist_missing_or_damaged(tmp_path):
    with pytest.raises(RepositoryError, match="apt-get install dataset-fashion-mnist"):
        FashionMNIST(folder=tmp_path)
    images = tmp_path / "train-images-idx3-ubyte"
    for content, message in ((b"\x00\x00\x08\x01\x00\x00\x00\x05ab", "truncated: 2 bytes"), (b"PK", "not an IDX file")):
        images.write_bytes(content)
        with pytest.raises(RepositoryError, match=message):
            FashionMNIST(folder=tmp_path)
    images.unlink()
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(packed, np.zeros((2, 28, 28)))
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(RepositoryError, match="cannot be read"):
        FashionMNIST(folder=tmp_path)


def paint(path, color, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_folder_with_classes(tmp_path):
    paint(tmp_path / "dogs" / "b.png", (255, 0, 0))
    paint(tmp_path / "cats" / "a.jpg", (0, 0, 0))
    paint(tmp_path / "cats" / "c.png", (255, 255, 255), size=(3, 40))
    (tmp_path / "notes").mkdir()
    data = ImageFolder(tmp_path, resolution=4)
    assert (data.class_names, len(data)) == (["cats", "dogs"], 3)
    batch = data.batch(torch.tensor([2, 1]))
    assert batch["class_labels"].tolist() == [1, 0]
    assert batch["images"].shape == (2, 3, 4, 4)
    assert batch["images"][0, :, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert batch["images"][1].unique().tolist() == [1.0]


def test_folder_without_classes_mirrored_and_grey(tmp_path):
    half = np.zeros((6, 6), dtype=np.uint8)
    half[:, 3:] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    data = ImageFolder(tmp_path, resolution=6, channels=1, mirror=True)
    assert (data.class_names, len(data)) == ([], 2)
    batch = data.batch(torch.arange(2))
    assert set(batch) == {"images"}
    assert torch.equal(batch["images"][1], batch["images"][0].flip(-1))
    assert batch["images"][0, 0, 0].tolist() == [-1.0] * 3 + [1.0] * 3


def test_cameras_rotation_is_undone(tmp_path):
    half = Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), [4, 4], axis=0).repeat(8, axis=1))
    exif = half.getexif()
    exif[0x0112] = 6  # turn by 90° clockwise to show
    half.save(tmp_path / "turned.png", exif=exif)
    image = ImageFolder(tmp_path, resolution=8, channels=1).batch(torch.tensor([0]))["images"]
    assert image[0, 0, 0].tolist() == [1.0] * 4 + [-1.0] * 4


def test_folders_that_cannot_be(tmp_path):
    with pytest.raises(RepositoryError, match="there is no folder"):
        ImageFolder(tmp_path / "nowhere", 4)
    with pytest.raises(RepositoryError, match="there are no pictures"):
        ImageFolder(tmp_path, 4)
    with pytest.raises(ConfigError, match="channels is 4"):
        ImageFolder(tmp_path, 4, channels=4)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(RepositoryError, match=r"broken\.png"):
        ImageFolder(tmp_path, 4).batch(torch.tensor([0]))
    paint(tmp_path / "cats" / "a.png", (0, 0, 0))
    with pytest.raises(RepositoryError, match="beside class folders"):
        ImageFolder(tmp_path, 4)


def test_every_epoch_has_each_sample_once_in_another_order():
    order = ShuffledOrder(7, seed=3)
    epochs = [order.indices(7 * k, 7).tolist() for k in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    across = ShuffledOrder(7, seed=3).indices(5, 12).tolist()
    assert across == [*epochs[0], *epochs[1], *epochs[2]][5:17]


def test_batches_start_anywhere():
    data = TinyPictures()
    everything = [batch["class_labels"] for batch in batches(data, 0, 4, 0, 9)]
    assert len(everything) == 9
    later = [batch["class_labels"] for batch in batches(data, 0, 4, 6, 9)]
    assert all(torch.equal(a, b) for a, b in zip(later, everything[6:], strict=True))
