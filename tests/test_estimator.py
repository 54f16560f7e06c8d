"""`PromptClassifier` is a scikit-learn classifier: by its own checks, in its own tools, and with the numbers of
`bbt.tune`."""

import copy
import enum
import io

import joblib
import numpy as np
import pytest
from serving import serving
from sklearn.base import clone
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

import bbt
from bbt import PromptClassifier, open_models
from bbt.errors import ConfigError, DataError, LabelWordError

GOOD = ["a film so great", "a warm and funny story", "I liked it , it was great", "great acting and a great plot"]
BAD = ["a film so bad", "the plot is worse", "I did not like it , it was slow", "the acting is bad"]
TEXTS, LABELS = [text for pair in zip(GOOD, BAD, strict=True) for text in pair], ["great", "bad"] * 4
SEARCH = {"prompt": {"n_prompt_tokens": 2, "n_screened": 1, "intrinsic_dim": 4}, "budget": {"dev_every": 20}}

TEXT_ONLY = "the check hands over numbers, and texts are expected"
WANT_TEXTS = """
    check_classifier_data_not_an_array check_classifiers_classes check_classifiers_train
    check_decision_proba_consistency check_dict_unchanged check_dont_overwrite_parameters
    check_dtype_object check_estimators_dtypes check_estimators_empty_data_messages
    check_estimators_fit_returns_self check_estimators_nan_inf check_estimators_overwrite_params
    check_estimators_pickle check_f_contiguous_array_estimator check_fit2d_1feature check_fit2d_1sample
    check_fit2d_predict1d check_fit_check_is_fitted check_fit_idempotent check_fit_score_takes_y
    check_methods_sample_order_invariance check_methods_subset_invariance check_n_features_in
    check_n_features_in_after_fitting check_pipeline_consistency check_positive_only_tag_during_fit
    check_readonly_memmap_input check_supervised_y_2d
"""
FAILURES_OF_TEXT_ONLY = {
    **dict.fromkeys(WANT_TEXTS.split(), TEXT_ONLY),
    "check_estimator_sparse_array": "for an estimator of 1-D data the check makes 1-D arrays that it cannot convert",
}
BY_MACHINE = "equal to 1e-5 and not always to 1e-7: a model's float32 depends on its batch"
FAILURES_WITH_NUMBERS_AS_TEXT = {
    "check_classifiers_train": "the manual prompt of a random model cannot tell texts of numbers apart",
    "check_methods_sample_order_invariance": BY_MACHINE,
    "check_methods_subset_invariance": BY_MACHINE,
}


class Numbers(PromptClassifier):
    """Reads rows of numbers as texts, so that scikit-learn's checks of the contract run to their end."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = False
        return tags

    def _texts(self, X, reset):
        rows = np.asarray(validate_data(self, X, reset=reset), dtype=float)
        return [(" ".join(f"{value:.1f}" for value in row), "") for row in rows]

    def _words(self, classes):
        return list("abcdefghijkl"[: len(classes)])


@pytest.fixture
def classifier(tiny_folder):
    """A classifier on the tiny BERT; a search of 40 queries unless told otherwise."""

    def make(kind=PromptClassifier, **parameters):
        options = {"device": "cpu", "precision": "fp32"}
        if parameters.get("method", "black-box") == "black-box":
            parameters.setdefault("settings", SEARCH)
        return kind(str(tiny_folder("bert")), **{"budget": 40, "options": options, **parameters})

    return make


@pytest.fixture
def loads(monkeypatch):
    """The models that are loaded, none of them open yet."""
    seen = []
    opened = open_models.open_backend
    monkeypatch.setattr(open_models, "open_backend", lambda config: seen.append(config.name) or opened(config))
    open_models.forget_models()
    return seen


def pickled(estimator):
    """(bytes of its joblib pickle, the estimator from it)."""
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return len(file.getvalue()), joblib.load(file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [(PromptClassifier, FAILURES_OF_TEXT_ONLY), (Numbers, FAILURES_WITH_NUMBERS_AS_TEXT)],
    ids=["texts", "numbers as texts"],
)
def test_scikit_learns_own_checks(kind, expected, classifier):
    checks = check_estimator(
        classifier(kind, method="manual"), expected_failed_checks=expected, on_fail=None, on_skip=None
    )
    failed = {check["check_name"]: repr(check["exception"]) for check in checks if check["status"] == "failed"}
    assert failed == {}
    statuses = {check["check_name"]: check["status"] for check in checks}  # the last of several of one name
    passed = [name for name, why in expected.items() if statuses.get(name) == "passed" and why != BY_MACHINE]
    assert passed == [], "take these off the list"


def test_it_gives_the_numbers_of_tune(classifier):
    fitted = classifier().fit(TEXTS, LABELS)
    rows = list(zip(TEXTS, LABELS, strict=True))
    model = {"name": fitted.model, "options": dict(fitted.options)}
    outcome = bbt.tune(SEARCH, train=rows, model=model, budget={"queries": 40, "dev_every": 20}, progress=False)
    assert fitted.classes_.tolist() == ["bad", "great"]
    assert fitted.result_["selected"] == outcome.result["selected"]
    np.testing.assert_array_equal(fitted.prompt_.embeddings, outcome.classifier.prompt.embeddings)
    assert fitted.prompt_.biases == outcome.classifier.prompt.biases


def test_probabilities_decisions_and_answers_agree(classifier):
    fitted = classifier().fit(TEXTS, LABELS)
    probabilities, decisions = fitted.predict_proba(TEXTS), fitted.decision_function(TEXTS)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(decisions, np.log(probabilities[:, 1] / probabilities[:, 0]))
    assert fitted.predict(TEXTS).tolist() == fitted.classes_[probabilities.argmax(axis=1)].tolist()
    assert fitted.score(TEXTS, LABELS) == np.mean(fitted.predict(TEXTS) == LABELS)
    three = classifier(method="manual", label_words=["bad", "great", "slow"]).fit(
        TEXTS + TEXTS[:4], [0, 1] * 4 + [2] * 4
    )
    np.testing.assert_allclose(three.decision_function(TEXTS), np.log(three.predict_proba(TEXTS)))
    assert three.predict_proba(TEXTS).shape == (8, 3)


def test_a_cross_validation_and_a_grid_load_the_model_once(classifier, loads):
    scores = cross_val_score(classifier(), TEXTS, LABELS, cv=2)
    assert scores.shape == (2,)
    grid = GridSearchCV(classifier(method="manual"), {"template": ["{text} {mask}", "{text} it was {mask}"]}, cv=2)
    grid.fit(np.array(TEXTS), LABELS)
    assert grid.best_params_["template"] in ("{text} {mask}", "{text} it was {mask}")
    assert len(loads) == 1


def test_tools_that_number_the_classes_take_words_in_their_order(classifier):
    voters = [("prompt", classifier(method="manual", label_words=["bad", "great"]))]
    expected = voters[0][1].fit(TEXTS, LABELS).predict(TEXTS)
    found = VotingClassifier(voters, voting="soft").fit(TEXTS, LABELS).predict(TEXTS)
    assert found.tolist() == expected.tolist()


def test_other_arguments_are_another_model(classifier, loads, tiny_folder):
    classifier(method="manual").fit(TEXTS, LABELS)
    PromptClassifier(str(tiny_folder("distilbert")), method="manual").fit(TEXTS, LABELS)
    classifier(method="manual").fit(TEXTS, LABELS)
    assert len(loads) == 2


def test_clones_and_pipelines(classifier):
    estimator = classifier(template="{prompt} {text} {mask}", label_words={"great": "great", "bad": "bad"})
    assert clone(estimator).get_params() == estimator.get_params()
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, estimator).fit([text.upper() for text in TEXTS], LABELS)
    expected = clone(estimator).fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_array_equal(pipeline.predict_proba([text.upper() for text in TEXTS]), expected)


@pytest.mark.parametrize("method", ["black-box", "manual", "hard-prompt", "feature-mlp", "in-context"])
def test_a_pickle_holds_what_was_learnt_and_not_the_model(method, classifier, loads, tiny_folder):
    settings = {key: SEARCH[key] for key in ("prompt", "budget") if method in ("black-box", "hard-prompt")}
    fitted = classifier(method=method, settings=settings).fit(TEXTS, LABELS)
    expected = fitted.predict_proba(TEXTS)
    open_models.forget_models()
    loads.clear()
    size, restored = pickled(fitted)
    assert size < (tiny_folder("bert") / "model.safetensors").stat().st_size
    assert loads == []
    for _ in range(2):
        np.testing.assert_allclose(restored.predict_proba(TEXTS), expected, atol=1e-6)
    assert len(loads) == 1
    again = pickled(pickled(fitted)[1])[1]
    np.testing.assert_allclose(copy.deepcopy(again).predict_proba(TEXTS), expected, atol=1e-6)


class Mood(enum.Enum):
    UP = "up"
    DOWN = "down"


@pytest.mark.parametrize(
    ("up", "down"), [("great", "bad"), (1, 0), (True, False), (Mood.UP, Mood.DOWN), (("a", 1), ("b", 2)), (7, "low")]
)
def test_labels_of_any_hashable_kind(up, down, classifier):
    labels = [up, down] * 4
    fitted = classifier(method="manual", label_words={up: "great", down: "bad"}).fit(TEXTS, labels)
    expected = classifier(method="manual").fit(TEXTS, LABELS).predict(TEXTS)
    assert set(fitted.classes_.tolist()) == {up, down}
    assert fitted.predict(TEXTS).tolist() == [up if one == "great" else down for one in expected]


def test_texts_from_whatever_holds_them(classifier):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"body": TEXTS, "mood": pandas.Categorical(LABELS)})
    expected = classifier(method="manual").fit(TEXTS, LABELS).predict_proba(TEXTS)
    for texts in (np.array(TEXTS), np.array(TEXTS, dtype=object), frame["body"], frame[["body"]], tuple(TEXTS)):
        fitted = classifier(method="manual").fit(texts, frame["mood"])
        np.testing.assert_array_equal(fitted.predict_proba(texts), expected)
        assert fitted.n_features_in_ == 1
    fitted = classifier(method="manual").fit(frame[["body"]], frame["mood"])
    assert fitted.feature_names_in_.tolist() == ["body"]
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[["body"]].rename(columns={"body": "text"}))


def test_pairs_as_columns_or_tuples(classifier):
    pandas = pytest.importorskip("pandas")
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    fitted = classifier(method="manual").fit(pairs, LABELS)
    assert fitted.n_features_in_ == 2
    assert "{text_pair}" in fitted.prompt_.template
    expected = fitted.predict_proba(pairs)
    for same in (np.array(pairs), pandas.DataFrame(pairs, columns=["one", "other"])):
        fitted = classifier(method="manual").fit(same, LABELS)
        np.testing.assert_array_equal(fitted.predict_proba(same), expected)
    with pytest.raises(DataError, match="X has 1 features, but PromptClassifier is expecting 2"):
        classifier(method="manual").fit(pairs, LABELS).predict(TEXTS)


def test_dev_rows_of_ones_own_and_a_share(classifier):
    own = classifier(method="manual").fit(TEXTS[:4], LABELS[:4], dev=(TEXTS[4:], LABELS[4:]))
    assert own.result_["cost"]["examples"] == 8
    shared = classifier(method="manual", dev=0.25).fit(TEXTS, LABELS)
    assert shared.result_["cost"]["examples"] == 8
    with pytest.raises(DataError, match="dev has the label 'worse'"):
        own.fit(TEXTS, LABELS, dev=(TEXTS[:1], ["worse"]))


def test_a_remote_backend_by_the_same_arguments(classifier, tiny_backend):
    expected = classifier().fit(TEXTS, LABELS).predict_proba(TEXTS)
    with serving(tiny_backend("bert")) as url:
        fitted = classifier(backend="http", options={"url": url}).fit(TEXTS, LABELS)
        np.testing.assert_allclose(fitted.predict_proba(TEXTS), expected, atol=1e-5)
    open_models.forget_models()


def test_the_seed_is_the_random_state(classifier):
    prompts = [classifier(random_state=seed).fit(TEXTS, LABELS).prompt_ for seed in (3, 3, 4)]
    assert prompts[0].provenance["seed"] == 3
    np.testing.assert_array_equal(prompts[0].embeddings, prompts[1].embeddings)
    drawn = [classifier(method="manual", random_state=np.random.RandomState(0)).fit(TEXTS, LABELS) for _ in range(2)]
    assert drawn[0].config_.seed == drawn[1].config_.seed


@pytest.mark.parametrize(
    ("fit", "parameters", "error", "says"),
    [
        ({"sample_weight": [1] * 8}, {}, TypeError, "takes no sample_weight"),
        ({"y": ["great"] * 8}, {}, DataError, "y has one class, 'great'"),
        ({"y": LABELS[:5]}, {}, DataError, "8 texts, 5 labels"),
        ({"y": [*LABELS[:7], None]}, {}, DataError, r"y\[7\] is None"),
        ({"X": "one text"}, {}, DataError, "X is a str, expected texts"),
        ({"X": [*TEXTS[:7], 3.0]}, {}, DataError, r"X\[7\] is .*not text"),
        ({"X": [("a", "b", "c")] * 8}, {}, DataError, "holds 3 values"),
        ({}, {"label_words": {"great": "great"}}, ConfigError, "no word for bad"),
        ({}, {"label_words": ["great"]}, ConfigError, "one word for each of the classes bad, great"),
        ({}, {"label_words": 5}, ConfigError, "label_words is 5, expected one word for each"),
        ({"y": [1, 0] * 4}, {}, LabelWordError, "numbers the classes .* give label_words as a list"),
        ({"y": [1, 0] * 4}, {"label_words": {"bad": "bad"}}, ConfigError, "no word for 0, 1. scikit-learn numbers"),
        ({}, {"settings": {"seed": 3}}, ConfigError, "seed is no part of settings"),
        ({}, {"method": "black-bocks"}, ConfigError, "Did you mean 'black-box'"),
        ({}, {"dev": 1.5}, DataError, "between 0 and 1, got 1.5"),
        ({"y": ["splendid", "bad"] * 4}, {}, LabelWordError, "Without label_words the classes' names are taken"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(fit, parameters, error, says, classifier):
    with pytest.raises(error, match=says):
        classifier(**{"method": "manual", **parameters}).fit(**{"X": TEXTS, "y": LABELS, **fit})


def test_what_is_not_fitted_says_so(classifier):
    for ask in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(classifier(), ask)(TEXTS)
