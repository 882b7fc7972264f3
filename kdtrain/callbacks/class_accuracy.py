"""The accuracy of each class on the held-out images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Loader

_MOST_CLASSES = 30  # more curves than anyone looks at


def accuracies_of_classes(logits: npt.NDArray[np.float32], loader: Loader) -> dict[str, float]:
    """Returns the fraction, 0..1, of each class's images that are recognised, by the class's name.

    A class without images is left out. There is no entry if there are more than 30 classes.

    Args:
        logits: (N, C) float32.
        loader: the images that they are about.
    """
    classes = logits.shape[1]
    if classes > _MOST_CLASSES:
        return {}
    recognised = loader.targets[logits.argmax(axis=1) == loader.targets]
    hits = np.bincount(recognised, minlength=classes)
    images = np.bincount(loader.targets, minlength=classes)
    return {loader.classes[i]: float(hits[i] / images[i]) for i in np.flatnonzero(images)}
