"""Classifier two-sample test: can anything tell the two sets apart?"""

from __future__ import annotations

import math
from typing import Any

import torch

from sdekit.certify.metrics.result import Metric, against_null, pair, reference
from sdekit.errors import OptionalDependencyError, ShapeError, check_count

__all__ = ["c2st"]


def c2st(
    samples: Any,
    against: Any,
    *,
    classifier: Any = None,
    folds: int = 5,
    repeats: int = 99,
    size: int | None = None,
    seed: int = 0,
) -> Metric:
    r"""Accuracy of a classifier that tells the two sets apart, by cross-validation: 1/2 for equal laws.

        accuracy = (1/2n) sum_i [f_{-i}(z_i) = label_i],

    f_{-i} trained on the folds without row i.

    samples: (n, *event). against: samples, or a target, of which ``size`` samples are drawn (n unless given);
    the larger set is cut to the smaller. classifier: any scikit-learn classifier; the default standardises
    and takes the k = sqrt(training rows) nearest neighbours. stderr: binomial, sqrt(a (1 - a)/(2 n)). floor,
    pvalue: ``repeats`` relabellings, each trained anew, an exact test for a deterministic classifier.

    Raises
    ------
    OptionalDependencyError: scikit-learn is not installed. ShapeError: shapes do not fit, or fewer rows than
    folds. NonFiniteError: NaN or infinity in samples.

    References
    ----------
    Lopez-Paz and Oquab 2017 (ICLR, arXiv:1610.06545), section 3.
    """
    try:
        from sklearn.base import clone
        from sklearn.model_selection import StratifiedKFold
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise OptionalDependencyError(
            "c2st needs scikit-learn, which is not installed. Next: pip install 'sdekit[demo]', or pip "
            "install scikit-learn."
        ) from error
    given = pair(samples, against, seed)
    y = reference(given, size)
    folds, n = check_count(folds, "folds", minimum=2), min(len(given.x), len(y))
    if n < 2 * folds:
        raise ShapeError(
            f"c2st needs at least 2 rows of each set in each of {folds} folds, got {n} rows. Next: more "
            f"samples, or fewer folds."
        )
    z = torch.cat([given.x[:n], y[:n]]).numpy()
    labels = torch.arange(2 * n).lt(n).numpy()
    if classifier is None:
        training = 2 * n * (folds - 1) // folds
        classifier = make_pipeline(StandardScaler(), KNeighborsClassifier(max(1, math.isqrt(training))))
    splits = StratifiedKFold(folds, shuffle=True, random_state=given.key % 2**32)

    def accuracy(target: Any) -> float:
        right = 0
        for train, test in splits.split(z, target):
            fitted = clone(classifier).fit(z[train], target[train])
            right += int((fitted.predict(z[test]) == target[test]).sum())
        return right / (2 * n)

    value = accuracy(labels)
    generator = torch.Generator().manual_seed(given.key)
    orders = [
        torch.randperm(2 * n, generator=generator).numpy() for _ in range(check_count(repeats, "repeats", 0))
    ]
    floor, pvalue = against_null(value, [accuracy(labels[order]) for order in orders])
    return Metric("C2ST accuracy", value, math.sqrt(value * (1 - value) / (2 * n)), floor, pvalue, n, n)
