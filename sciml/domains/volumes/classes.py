"""Scores of classifications. Those of one subject are means over subjects; those that compare subjects are written as
numbers per subject whose mean they are, so that intervals over subjects hold for them too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sciml.adapter import Metric
from sciml.domains.volumes.config import CATEGORY

LEAST = 1e-12
"""Probability that a class is taken to have at least, where its logarithm is asked for."""
SHARE = "share"


def metrics(count: int) -> tuple[Metric, ...]:
    """Of `count` classes."""
    return (Metric("accuracy", "1", "subjects whose likeliest class is theirs", higher=True),
            Metric("balanced_accuracy", "1", "share of a class's subjects given that class, mean over classes",
                   higher=True, null=1 / max(count, 1)),
            Metric("log_loss", "nat", "−log probability of a subject's class, mean over subjects",
                   null=float(np.log(max(count, 1)))),
            Metric("auc", "1", "mean over classes of the area under the ROC curve, one against the rest", higher=True,
                   null=0.5))


def scores(share: np.ndarray, category: np.ndarray) -> dict[str, np.ndarray]:
    """Of probabilities ``(n, K)`` and true classes ``(n,)``, per subject; and both, for `across`.

    >>> scores(np.array([[0.25, 0.75]]), np.array([1]))["accuracy"].tolist()
    [1.0]
    """
    own = np.take_along_axis(share.astype(np.float64), category[:, None], 1)[:, 0]
    return {"accuracy": (share.argmax(1) == category).astype(np.float64),
            "log_loss": -np.log(np.maximum(own, LEAST)), SHARE: share, CATEGORY: category}


def across(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The scores of all subjects with `balanced_accuracy` and, where there are two classes at least, `auc`."""
    made = {name: values for name, values in found.items() if name not in (SHARE, CATEGORY)}
    share, category = found[SHARE], found[CATEGORY]
    made["balanced_accuracy"] = balanced(made["accuracy"], category)
    if len(np.unique(category)) > 1:
        made["auc"] = auc(share, category)
    return made


def balanced(right: np.ndarray, category: np.ndarray) -> np.ndarray:
    """``(n,)`` whose mean is the balanced accuracy: the mean, over the classes that occur, of the share of their
    subjects that is right. Source: Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.

    >>> balanced(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1])).tolist()
    [0.75, 0.0, 1.5]
    """
    _, place, sizes = np.unique(category, return_inverse=True, return_counts=True)
    weighed: np.ndarray = right * len(category) / (len(sizes) * sizes[place])
    return weighed


def auc(share: np.ndarray, category: np.ndarray) -> np.ndarray:
    """``(n,)`` whose mean is the area under the ROC curve of each class that occurs against all others, mean over
    classes: how often a subject of the class is given a larger share of it than one of another, ties half.

    A subject's number is the area plus its influence on it, the structural components of DeLong, DeLong &
    Clarke-Pearson, Biometrics 44, 837, 1988: means over resampled subjects spread as the area does.

    >>> auc(np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]]), np.array([0, 1, 0])).tolist()
    [1.0, 1.0, 1.0]
    """
    total, occurring = np.zeros(len(category)), np.unique(category)
    for value in occurring:
        inside = category == value
        ours, others = share[inside, value].astype(np.float64), share[~inside, value].astype(np.float64)
        wins = (ours[:, None] > others) + 0.5 * (ours[:, None] == others)
        area = wins.mean()
        total[inside] += area + len(category) / len(ours) * (wins.mean(1) - area)
        total[~inside] += area + len(category) / len(others) * (wins.mean(0) - area)
    mean: np.ndarray = total / len(occurring)
    return mean
