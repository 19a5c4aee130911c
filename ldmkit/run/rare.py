"""Pictures that show what few others show come more often in a training from text."""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from ldmkit.components.protocols import CaptionReader

MAX_FACTOR = 3.0
"""how often a picture comes at most, where a common one comes once: single pictures that came 20 times as often were
learned by heart"""


def repeat_factors(
    captioner: CaptionReader, captions: Sequence[str], numbers: np.ndarray, threshold: float
) -> np.ndarray:
    """(N,) how often each picture is to come, as a multiple of what a common one does.

    `numbers` (N, K): which of the captions are each picture's, -1 behind its last.

    Repeat-factor sampling, Gupta et al. 2019 (LVIS): a label that the share f of the pictures has gets
    max(1, sqrt(threshold / f)), and a picture the largest of its labels', here `MAX_FACTOR` at most. A label counts
    once a picture, however many of its captions name it.
    """
    of_caption = captioner.labels(captions)
    return factors_of([set[str]().union(*(of_caption[n] for n in row if n >= 0)) for row in numbers], threshold)


def factors_of(labels: Sequence[Collection[str]], threshold: float) -> np.ndarray:
    """(N,) repeat factors of pictures by their labels, from 1 to `MAX_FACTOR`."""
    counts = Counter(label for each in labels for label in each)
    limit = threshold * len(labels)
    factors = [max([1.0, *((limit / counts[label]) ** 0.5 for label in each)]) for each in labels]
    return np.minimum(factors, MAX_FACTOR)
