"""The paper's model: one-vs-rest logistic regression from scikit-learn, and its averages."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.multiclass import OneVsRestClassifier

from benchmark.artefacts import digest
from benchmark.reproduce.pride.parties import Points
from federation.files import atomic_write

SOLVER = {"solver": "liblinear", "C": 1.0, "max_iter": 100}
"""The defaults of `LogisticRegression` when the paper was written: liblinear, one-vs-rest, L2. In scikit-learn 1.9 the
class is multinomial, its parameter `multi_class` is gone and liblinear takes two classes only, so that one-vs-rest is
`OneVsRestClassifier` around it, which fits the same ten problems."""


@dataclass(frozen=True, eq=False)
class LinearModel:
    """scikit-learn's `coef_` [classes, pixels] and `intercept_` [classes]; row c says how much it looks like class c."""

    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]

    def predict(self, pixels: NDArray[np.float64]) -> NDArray[np.int64]:
        """The class whose row scores highest: [count] from [count, pixels]."""
        return np.argmax(pixels @ self.weights.T + self.intercepts, axis=1)

    def with_rows(self, rows: Sequence[int], values: NDArray[np.float64]) -> LinearModel:
        """The model with some rows of weights replaced by `values` [len(rows) * pixels]; intercepts stay."""
        weights = self.weights.copy()
        weights[list(rows)] = values.reshape(len(rows), -1)
        return LinearModel(weights, self.intercepts)

    def rows(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """Rows of weights one after the other: [len(rows) * pixels]."""
        return self.weights[list(rows)].ravel()


@dataclass(frozen=True, eq=False)
class Trained:
    """A model and the seconds that its training took."""

    model: LinearModel
    seconds: float


def train(points: Points) -> Trained:
    """Fit the ten one-vs-rest problems; deterministic."""
    start = time.perf_counter()
    # Sparse rows are what liblinear works on; MNIST is four fifths zeros.
    fitted = OneVsRestClassifier(LogisticRegression(**SOLVER)).fit(csr_matrix(points.pixels), points.labels)
    seconds = time.perf_counter() - start
    weights = np.vstack([one.coef_ for one in fitted.estimators_])
    return Trained(LinearModel(weights, np.concatenate([one.intercept_ for one in fitted.estimators_])), seconds)


def trained_once(points: Points, folder: Path) -> Trained:
    """What `train` gives, from `folder` where the same points were trained before; its seconds are those of then."""
    path = folder / f"{_address(points)}.safetensors"
    kept = _read(path)
    if kept is not None:
        return kept
    trained = train(points)
    tensors = {"weights": trained.model.weights, "intercepts": trained.model.intercepts}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {"seconds": repr(trained.seconds)})
    return trained


def weighted_mean(models: Sequence[LinearModel], sizes: Sequence[int]) -> LinearModel:
    """FedAvg (McMahan 2016): sum of n_k / n times model k."""
    shares = np.asarray(sizes) / sum(sizes)
    return LinearModel(
        np.tensordot(shares, np.stack([model.weights for model in models]), 1),
        np.tensordot(shares, np.stack([model.intercepts for model in models]), 1),
    )


@dataclass(frozen=True, eq=False)
class Score:
    """How a model does on some points: accuracy 0..1, confusion counts [true class, predicted class]."""

    accuracy: float
    confusion: NDArray[np.int64]


def evaluate(model: LinearModel, points: Points) -> Score:
    """Accuracy and confusion matrix on `points`."""
    counts = confusion_matrix(points.labels, model.predict(points.pixels), labels=range(len(model.intercepts)))
    return Score(float(np.trace(counts) / counts.sum()), counts)


def _address(points: Points) -> str:
    content = hashlib.sha256(np.ascontiguousarray(points.images).data)
    content.update(points.labels.tobytes())
    return digest(content.hexdigest(), SOLVER, sklearn.__version__)


def _read(path: Path) -> Trained | None:
    """What was kept; None where there is nothing or it does not read well, so that it is trained anew."""
    try:
        with safe_open(path, framework="np") as kept:
            model = LinearModel(kept.get_tensor("weights"), kept.get_tensor("intercepts"))
            return Trained(model, float(kept.metadata()["seconds"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
