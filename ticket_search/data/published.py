"""What the files of published data sets are: MD5 digests as their authors give them, to tell other contents by.

The digests of packed files, of CIFAR's batches and of SVHN are those that torchvision downloads by; those of unpacked
IDX files belong to the same contents, which may be packed by another program. Of EMNIST's files and of KMNIST's
unpacked ones none are known here, and of CIFAR's binary version the sizes only.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from .arrays import read_bytes

_IMAGES, _LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
_TEST_IMAGES, _TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

DIGESTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "mnist": {
        f"{_IMAGES}.gz": ("f68b3c2dcbeaaa9fbdd348bbdeb94873",),
        f"{_LABELS}.gz": ("d53e105ee54ea40749a09fcbcd1e9432",),
        f"{_TEST_IMAGES}.gz": ("9fb629c4189551a2d022fa330f9573f3",),
        f"{_TEST_LABELS}.gz": ("ec29112dd5afa0611ce80d1b7f02629c",),
        _IMAGES: ("6bbc9ace898e44ae57da46a324031adb",),
        _LABELS: ("a25bea736e30d166cdddb491f175f624",),
        _TEST_IMAGES: ("2646ac647ad5339dbf082846283269ea",),
        _TEST_LABELS: ("27ae3e4e09519cfbb04c329615203637",),
    },
    # The second of each is Debian's, which has packed the same contents anew.
    "fashion-mnist": {
        f"{_IMAGES}.gz": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "cf8536b0aa1a6ac5fa3f23001093305c"),
        f"{_LABELS}.gz": ("25c81989df183df01b3e8a0aad5dffbe", "10bea18fdb374794d4bb42e356e600c9"),
        f"{_TEST_IMAGES}.gz": ("bef4ecab320f06d8554ea6380940ec79", "f78720b4224f21cce2f2ccf2d7a94c9a"),
        f"{_TEST_LABELS}.gz": ("bb300cfdad3c16e7a12a480ee83cd310", "0d30e22e447f3c33dab9ed536400ac01"),
        _IMAGES: ("f4a8712d7a061bf5bd6d2ca38dc4d50a",),
        _LABELS: ("9018921c3c673c538a1fc5bad174d6f9",),
        _TEST_IMAGES: ("8181f5470baa50b63fa0f6fddb340f0a",),
        _TEST_LABELS: ("15d484375f8d13e6eb1aabb0c3f46965",),
    },
    "kmnist": {
        f"{_IMAGES}.gz": ("bdb82020997e1d708af4cf47b453dcf7",),
        f"{_LABELS}.gz": ("e144d726b3acfaa3e44228e80efcd344",),
        f"{_TEST_IMAGES}.gz": ("5c965bf0a639b31b8f53240b1b52f4d7",),
        f"{_TEST_LABELS}.gz": ("7320c461ea6c1c855c0b718fb2a4b134",),
    },
    "cifar10": {
        "data_batch_1": ("c99cafc152244af753f735de768cd75f",),
        "data_batch_2": ("d4bba439e000b95fd0a9bffe97cbabec",),
        "data_batch_3": ("54ebc095f3ab1f0389bbae665268c751",),
        "data_batch_4": ("634d18415352ddfa80567beed471001a",),
        "data_batch_5": ("482c414d41f54cd18b22e5b47cb7c3cb",),
        "test_batch": ("40351d587109b95175f43aff81a1287e",),
    },
    "cifar100": {
        "train": ("16019d7e3df5f24257cddd939b257f8d",),
        "test": ("f0ef6b0ae62326f3e7ffdfab6717acfc",),
    },
    "svhn": {
        "train_32x32.mat": ("e26dedcc434d2e4c54c9b2d4a06d8373",),
        "test_32x32.mat": ("eb5a983be6a315427106f1b164d9cef3",),
    },
}
# In bytes, of rows that end nowhere but where the file does: one that is cut between two of them looks whole.
SIZES: Mapping[str, Mapping[str, int]] = {
    "cifar10": {
        **{f"data_batch_{number}.bin": 10_000 * 3073 for number in range(1, 6)},
        "test_batch.bin": 10_000 * 3073,
    },
    "cifar100": {"train.bin": 50_000 * 3074, "test.bin": 10_000 * 3074},
}


def tell_of_others(name: str, paths: Iterable[Path]) -> None:
    """Warn of each file of a data set that is in its form and not the published one, which a person may have meant."""
    for path in paths:
        status = path.stat()
        if told := _differs(name, path, status.st_size, status.st_mtime_ns):
            warnings.warn(f"{path} is not the published file of {name}: {told}", stacklevel=3)


# A process may read a data set many times.
@functools.lru_cache(maxsize=64)
def _differs(name: str, path: Path, size: int, changed: int) -> str:
    """How a file differs from the published one; nothing where it does not, or where that is not known."""
    plain = path.name.removesuffix(".gz")
    length = SIZES.get(name, {}).get(plain)
    if length is not None:
        here = len(read_bytes(path))
        return f"it has {here:,} bytes, expected {length:,}" if here != length else ""
    known = DIGESTS.get(name, {})
    packed, unpacked = known.get(path.name, ()), known.get(plain, ())
    came = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if came in packed or not packed + unpacked:
        return ""
    if path.name != plain and unpacked:
        came = hashlib.md5(read_bytes(path), usedforsecurity=False).hexdigest()
        if came in unpacked:
            return ""
        return f"its MD5 is {came} when unpacked, expected {unpacked[0]}"
    return f"its MD5 is {came}, expected {packed[0]}"
