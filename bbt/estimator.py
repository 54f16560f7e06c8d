"""`PromptClassifier`: a tuned prompt in scikit-learn's words.

from bbt import PromptClassifier
classifier = PromptClassifier(label_words={"refund": "money", "bug": "error"}, budget=300)
classifier.fit(texts, labels).predict_proba(new_texts)
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from bbt.api import Outcome, tune_rows
from bbt.config import Config, make_config, merged
from bbt.errors import ConfigError, DataError, LabelWordError
from bbt.estimator_input import examples_of, labels_and_classes, rows_of_texts
from bbt.experiment.classifiers import Classifier, HardPromptClassifier, SoftPromptClassifier
from bbt.experiment.generators import labelling
from bbt.export import Target, export
from bbt.methods.saved import load_classifier
from bbt.open_models import OpenModel, open_model
from bbt.predictor import sound_scores
from bbt.prompts import HardPrompt, SoftPrompt
from bbt.runs.progress import shown_progress
from bbt.scoring.losses import log_softmax
from bbt.settings import CalibrationKind
from bbt.tasks import Example, Split
from bbt.tasks.configured import worded
from bbt.tasks.data import share_out

OWN = ("model", "method", "seed", "calibration", "data", "evaluation")
"""The keys of a config that are parameters of `PromptClassifier`, or have no meaning for it."""


class PromptClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of texts, or of pairs of texts, that tunes a prompt of a frozen language model.

    X is a list, array or Series of texts, a list of pairs (tuples), or a 2-D array or DataFrame of one or two columns
    of texts. y are labels of any hashable kind. What is learnt travels in a pickle, and the model's weights do not:
    they are loaded when they are first needed.

    Parameters:
        model: a bundled model's name, a folder, a name on the hub, or what an endpoint calls it.
        template: text with the slots {prompt}, {text}, {text_pair} and {mask} (none: the paper's for DBPedia, or its
            one for pairs).
        label_words: one word of one token for each class: a dict from class to word, or the words in the order of
            `classes_` (none: the classes' own names).
        method: a method's name (`bbt ls methods`), or a dict with its name and settings.
        budget: queries of a search, each a candidate on all train rows; methods without a search pay no heed to it.
        calibration: how class biases are found: none, fitted, batch or content-free.
        dev: which share of the rows, class by class, selects among prompts where `fit` is given no dev rows.
        random_state: seeds the search and the draw of dev rows.
        backend: local, http, pool, text-api, vllm or `module:Class`.
        options: the backend's own options, e.g. {"url": ...} or {"precision": "fp32"}.
        settings: what else a config may say, section by section, e.g. {"prompt": {"n_prompt_tokens": 10}}.
        verbose: whether a bar shows the progress on a terminal.

    Attributes:
        classes_: (K,) the classes, sorted where they can be.
        n_features_in_: 1, or 2 for pairs.
        feature_names_in_: the columns' names, where X was a DataFrame.
        result_: what `result.json` holds of a run.
        config_: the run's config.
    """

    def __init__(
        self,
        model: str = "minilm-mlm",
        *,
        template: str | None = None,
        label_words: Mapping[Hashable, str] | Sequence[str] | None = None,
        method: str | Mapping[str, Any] = "black-box",
        budget: int = 500,
        calibration: CalibrationKind = "fitted",
        dev: float = 0.5,
        random_state: Any = 0,
        backend: str = "local",
        options: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.template = template
        self.label_words = label_words
        self.method = method
        self.budget = budget
        self.calibration = calibration
        self.dev = dev
        self.random_state = random_state
        self.backend = backend
        self.options = options
        self.settings = settings
        self.verbose = verbose

    def fit(self, X: Any, y: Any, *, dev: tuple[Any, Any] | None = None, **unsupported: Any) -> "PromptClassifier":  # noqa: N803
        """Tune a prompt on texts and their labels; `dev` are further texts and labels, which select among prompts.

        Raises:
            TypeError: `sample_weight`, or another argument that is none.
            DataError: texts or labels that cannot be used; ConfigError: parameters that cannot.
            LabelWordError: a label word is not one token of the model.
        """
        if unsupported:
            raise TypeError(f"{type(self).__name__}.fit takes no {', '.join(unsupported)}: each row counts once.")
        seen, classes = labels_and_classes(y)
        if len(classes) < 2:
            raise DataError(f"y has one class, {', '.join(map(repr, classes.tolist()))}: a classifier needs two.")
        texts = self._texts(X, reset=True)
        train = examples_of(texts, seen, classes)
        config = self._config(classes)
        if dev is None:
            train, held_out = share_out(train, self.dev, config.seed)
        else:
            held_out = examples_of(self._texts(dev[0], reset=False), labels_and_classes(dev[1])[0], classes)
        opened = open_model(config.model)
        described = worded(
            config.task, config.task.label_names or (), opened.backend.info.kind, self.n_features_in_ == 2
        )
        config = config.model_copy(update={"task": described})
        try:
            with opened.lock, shown_progress(self.verbose) as observer:
                outcome = tune_rows(config, Split(train, held_out, []), opened.backend, observer)
        except LabelWordError as error:
            if self.label_words is not None:
                raise
            names_are_taken = f"Without label_words the classes' names are taken.{_numbered(classes)}"
            raise LabelWordError(f"{error} {names_are_taken}") from error
        self.classes_, self.config_, self.result_ = classes, config, outcome.result
        self._fitted: Classifier | dict[str, bytes] = labelling(outcome.classifier)
        self._opened: OpenModel | None = opened
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Predict the likeliest class of each text (B,); of several that are equally likely, the first one."""
        likeliest = self._log_probabilities(X).argmax(axis=1)
        return np.asarray(self.classes_[likeliest])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Predict the probabilities (B, K) of the classes, in the order of `classes_`."""
        return np.asarray(np.exp(self._log_probabilities(X)))

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Compute the log-probabilities (B, K) of the classes; with two classes, the log-odds (B,) of the second."""
        found = self._log_probabilities(X)
        return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found

    @property
    def prompt_(self) -> SoftPrompt | HardPrompt | None:
        """The prompt that was tuned, with its template, label words and class biases; None where the method tunes
        something else."""
        check_is_fitted(self)
        classifier, _ = self._loaded()
        return classifier.prompt if isinstance(classifier, (SoftPromptClassifier, HardPromptClassifier)) else None

    def export(self, folder: Path | str, to: Target = "peft") -> bool:
        """Write a folder that is used without bbt; False where it holds no soft prompt: see `bbt.export`.

        Raises:
            PromptError, BackendError: the method tunes no soft prompt, or it cannot be had exactly without bbt.
        """
        check_is_fitted(self)
        classifier, opened = self._loaded()
        return export(classifier, opened.backend, to, folder)

    def __getstate__(self) -> dict[str, Any]:
        """Give all but the model to a pickle: what was learnt goes in as the files that a run folder would hold."""
        state = dict(super().__getstate__())
        if "_fitted" in state:
            state["_fitted"], state["_opened"] = self._files(), None
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        return tags

    def _config(self, classes: NDArray[Any]) -> Config:
        """Make a config of the parameters.

        Raises:
            ConfigError: an impossible value, or `settings` that are parameters.
        """
        settings = dict(self.settings or {})
        twice = [key for key in OWN if key in settings]
        if twice:
            raise ConfigError(f"settings: {', '.join(twice)} is no part of settings: see the parameters.")
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31)
        own = {
            "task": {
                "name": "rows",
                "template": self.template,
                "label_names": [str(one) for one in classes],
                "label_words": self._words(classes),
            },
            "data": {"source": "memory", "k": "all", "labels": [str(one) for one in classes]},
            "model": {"backend": self.backend, "name": self.model, "options": dict(self.options or {})},
            "method": {"name": self.method} if isinstance(self.method, str) else dict(self.method),
            "evaluation": {"references": False},
            "calibration": self.calibration,
            "seed": int(seed),
        }
        return make_config(merged(settings, own), {"budget": {"queries": self.budget}})

    def _words(self, classes: NDArray[Any]) -> list[str] | None:
        """Put the label words in the order of the classes, where words are given.

        Raises:
            ConfigError: a class without a word, or another number of words than classes.
        """
        words = self.label_words
        if words is None:
            return None
        if isinstance(words, Mapping):
            missing = [str(one) for one in classes if one not in words]
            if missing:
                raise ConfigError(f"label_words has no word for {', '.join(missing)}.{_numbered(classes)}")
            return [words[one] for one in classes]
        if isinstance(words, str) or not isinstance(words, Sequence) or len(words) != len(classes):
            shown = ", ".join(map(str, classes))
            raise ConfigError(
                f"label_words is {words!r}, expected one word for each of the classes {shown}, or a dict."
            )
        return list(words)

    def _log_probabilities(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        check_is_fitted(self)
        texts = self._texts(X, reset=False)
        classifier, opened = self._loaded()
        with opened.lock:
            return log_softmax(sound_scores(classifier, [Example(text, 0, pair) for text, pair in texts]))

    def _texts(self, X: Any, reset: bool) -> list[tuple[str, str]]:  # noqa: N803
        """Read texts with their second texts, which are empty where there are none.

        Raises:
            DataError: no texts, or neither one nor two of them a row; or another number than `fit` was given.
        """
        validate_data(self, X, reset=reset, skip_check_array=True, ensure_2d=False)  # the columns' names
        texts = rows_of_texts(X)
        n = len(texts[0])
        if reset:
            self.n_features_in_ = n
        elif n != self.n_features_in_:
            expected = f"{type(self).__name__} is expecting {self.n_features_in_} features as input"
            raise DataError(f"X has {n} features, but {expected}: texts a row.")
        return [(row[0], row[1] if n == 2 else "") for row in texts]

    def _loaded(self) -> tuple[Classifier, OpenModel]:
        """Return what was trained and its model; after a pickle both are loaded here."""
        if self._opened is None or isinstance(self._fitted, dict):
            opened = open_model(self.config_.model)
            with TemporaryDirectory() as folder:
                for name, content in self._files().items():
                    path = Path(folder) / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                with opened.lock:
                    self._fitted = load_classifier(folder, opened.backend)[1]
            self._opened = opened
        return self._fitted, self._opened

    def _files(self) -> dict[str, bytes]:
        """Collect the files that a run folder would hold: path in it -> content."""
        if isinstance(self._fitted, dict):
            return self._fitted
        with TemporaryDirectory() as folder:
            Outcome(self.config_, self.result_, self._fitted).save(folder)
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _numbered(classes: NDArray[Any]) -> str:
    """Tell, where the classes are the numbers from 0 on, who may have numbered them; else nothing."""
    if classes.tolist() != list(range(len(classes))):
        return ""
    return (
        " scikit-learn numbers the classes in some of its tools (VotingClassifier, cross_val_predict with "
        "probabilities): there give label_words as a list, in the order of the sorted classes."
    )
