"""Splits: which images of a data set a run learns from."""

import numpy as np


def train_test(labels: np.ndarray, test_fraction: float, seed: int) -> list[np.ndarray]:
    """Indices, in order, of a training and a test part, stratified by class. Raises ValueError for too few images."""
    from sklearn.model_selection import train_test_split

    index = train_test_split(np.arange(len(labels)), test_size=test_fraction, random_state=seed, stratify=labels)
    return [np.sort(part) for part in index]


def few_shot(labels: np.ndarray, num_examples: int, seed: int) -> np.ndarray:
    """Indices (num_examples,) of a class-stratified subset by scikit-learn's `train_test_split`, as published.

    Raises ValueError where a class would have no image, or the data set does not hold as many images.
    """
    from sklearn.model_selection import train_test_split

    names, label = np.unique(labels), f"found {num_examples}, expected"
    if not len(names) <= num_examples <= len(labels) - len(names):
        raise ValueError(f"{label} {len(names)} (one per class) to {len(labels) - len(names)}")

    def draw(n: int) -> np.ndarray:
        return train_test_split(np.arange(len(labels)), train_size=n, random_state=seed, stratify=labels)[0]

    try:
        index = drawn = draw(num_examples)
        # The shares of rare classes are rounded, so a class can be left out although there is one image per class.
        enough = num_examples
        while len(np.unique(labels[drawn])) < len(names):
            enough += 1
            drawn = draw(enough)
    except ValueError as error:  # a class with a single image, for one
        raise ValueError(f"{label} other classes: {error}") from None
    if enough > num_examples:
        missing = np.setdiff1d(names, labels[index])
        raise ValueError(f"{label} at least {enough}: with seed {seed} no image of class {missing[0]} is drawn")
    return index
