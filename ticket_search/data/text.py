"""Text that every Python brings along, character by character: what `help("TOPIC")` shows of the language."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import numpy.typing as npt

from ..contract.errors import RequestError
from .arrays import Arrays

# Characters of a sample; each of them is to be followed by the right one.
CONTEXT = 64
# Of the topics, in alphabetical order, every tenth is for testing.
_TEST_EVERY = 10
_VALIDATION_SHARE = 0.1


def read(name: str, data_dir: str | None = None) -> Arrays:
    """The text in pieces of 64 characters that do not overlap, as numbers in the order of Unicode.

    `x` is int64 [n, 64] and `y` the same one character later. What is left over at the end of a part is dropped. The
    text is another in other versions of Python: `version` has 8 hexadecimal digits of its SHA-256.

    Raises:
        RequestError: this Python was installed without its documentation.
    """
    try:
        texts = _topics()
    except ImportError:
        raise RequestError(
            f"the data set {name} is the text of the module pydoc_data.topics, which this Python was installed without"
        ) from None
    whole = "".join(texts)
    alphabet = {character: number for number, character in enumerate(sorted(set(whole)))}
    test, train = "", ""
    for number, text in enumerate(texts, start=1):
        if number % _TEST_EVERY == 0:
            test += text
        else:
            train += text
    (train_x, train_y), (test_x, test_y) = (_pieces(part, alphabet) for part in (train, test))
    return Arrays(
        train_x, train_y, test_x, test_y,
        classes=len(alphabet), validation=round(len(train_y) * _VALIDATION_SHARE),
        version=hashlib.sha256(whole.encode()).hexdigest()[:8],
    )  # fmt: skip


@functools.cache
def _topics() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    return tuple(topics[topic] for topic in sorted(topics))


def _pieces(text: str, alphabet: dict[str, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    numbers = np.array([alphabet[character] for character in text], np.int64)
    count = (len(numbers) - 1) // CONTEXT
    x, y = (numbers[first : first + count * CONTEXT].reshape(count, CONTEXT) for first in (0, 1))
    return x.copy(), y.copy()
