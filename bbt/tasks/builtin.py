"""The seven tasks of the BBT paper with the reference's templates and label words, and TREC with ours.

For encoder-decoders they are those of its T5 data loaders: the words of masked LMs, where nothing else is said.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bbt.errors import ConfigError, unknown
from bbt.tasks.examples import Columns
from bbt.tasks.task import Task
from bbt.tasks.template import Template


@dataclass(frozen=True)
class Wording:
    """Template and label words for one kind of model."""

    template: str
    label_words: tuple[str, ...]


@dataclass(frozen=True)
class HubSource:
    """Where the task's data stands on the Hugging Face hub; `labels` are its own names of the labels, in our order,
    where they are not ours."""

    path: str
    subset: str | None
    columns: Columns
    splits: tuple[str, ...] = ("train", "test")
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TaskSpec:
    """A built-in task; `loss` is what the released code trains it with; without a `hub` it needs files. `clean` is what
    the released code does to its texts before it uses them."""

    title: str
    label_names: tuple[str, ...]
    masked: Wording
    causal: Wording
    hub: HubSource | None
    metrics: tuple[str, ...] = ("accuracy",)
    loss: str = "cross_entropy"
    clean: Callable[[str], str] | None = None
    encoder_decoder: Wording | None = None
    """The wording for encoder-decoders (none: that of masked LMs, with a sentinel or a mask token in the text)."""

    @property
    def takes_pair(self) -> bool:
        """Whether the task's examples have two texts."""
        return "{text_pair}" in self.masked.template

    def task(self, name: str, kind: str) -> Task:
        """The task, called `name`, worded for a `masked` or `causal` LM or an `encoder-decoder`."""
        wording = {"masked": self.masked, "causal": self.causal}.get(kind) or self.encoder_decoder or self.masked
        return Task(name, Template(wording.template), self.label_names, wording.label_words, self.metrics, self.loss)


def _without_written_newlines(text: str) -> str:
    """Yelp's reviews hold a backslash and an n where a line ended."""
    return text.replace("\\n", " ")


_SENTIMENT = ("negative", "positive")
_TOPICS = ("World", "Sports", "Business", "Tech")
_DBPEDIA = tuple(
    "Company Education Artist Athlete Office Transportation Building Natural Village Animal Plant Album Film "
    "Written".split()
)
_DBPEDIA_ON_THE_HUB = tuple(
    "Company EducationalInstitution Artist Athlete OfficeHolder MeanOfTransportation Building NaturalPlace Village "
    "Animal Plant Album Film WrittenWork".split()
)
_MRPC_ON_THE_HUB = ("not_equivalent", "equivalent")
_PAIR = "{prompt} . {text} ? {mask} , {text_pair}"
# The paper has no causal templates for pairs; this one is ours.
_CAUSAL_PAIR = "{prompt} . {text} Question : {text_pair} True , or not ? Answer : {mask}"
# The released code ends the row with the sentinel; the full stop puts the mask within the text, where one stands.
_T5_SENTIMENT = Wording("text: {prompt} {text} . It was {mask} .", _SENTIMENT)

TASKS: dict[str, TaskSpec] = {
    "sst2": TaskSpec(
        "SST-2: sentiment of a film review's sentence",
        _SENTIMENT,
        Wording("{prompt} . {text} . It was {mask} .", ("bad", "great")),
        Wording("{prompt} . {text} . The sentiment is {mask}", _SENTIMENT),
        HubSource("nyu-mll/glue", "sst2", Columns("sentence"), ("train", "validation")),
        encoder_decoder=_T5_SENTIMENT,
    ),
    "yelp": TaskSpec(
        "Yelp polarity: sentiment of a review",
        _SENTIMENT,
        Wording("{prompt} . {text} . It was {mask} .", ("bad", "great")),
        Wording("{prompt} . {text} . It is {mask}", _SENTIMENT),
        HubSource("fancyzhx/yelp_polarity", None, Columns(), labels=("1", "2")),
        encoder_decoder=_T5_SENTIMENT,
        clean=_without_written_newlines,
    ),
    "agnews": TaskSpec(
        "AG News: topic of a news item",
        _TOPICS,
        Wording("{prompt} . {mask} News: {text}", _TOPICS),
        Wording("{prompt} . {text} The news above is about {mask}", tuple(w.lower() for w in _TOPICS)),
        HubSource("fancyzhx/ag_news", None, Columns(), labels=("World", "Sports", "Business", "Sci/Tech")),
        encoder_decoder=Wording("{prompt} {mask} News: {text}", _TOPICS),
    ),
    "dbpedia": TaskSpec(
        "DBPedia: ontology class of an encyclopedia entry",
        _DBPEDIA,
        Wording("{prompt} [ Category: {mask} ] {text}", _DBPEDIA),
        Wording("{prompt} {text} The text above is about {mask}", tuple(w.lower() for w in _DBPEDIA)),
        HubSource("fancyzhx/dbpedia_14", None, Columns("content"), labels=_DBPEDIA_ON_THE_HUB),
        clean=str.strip,
    ),
    "mrpc": TaskSpec(
        "MRPC: do two sentences say the same",
        ("different", "equivalent"),
        Wording(_PAIR, ("No", "Yes")),
        Wording(_CAUSAL_PAIR, ("no", "yes")),
        HubSource("nyu-mll/glue", "mrpc", Columns("sentence1", "sentence2"), ("train", "validation"), _MRPC_ON_THE_HUB),
        metrics=("f1", "accuracy"),
        loss="hinge",
    ),
    "rte": TaskSpec(
        "RTE: does the first text entail the second",
        ("entailment", "not_entailment"),
        Wording(_PAIR, ("Yes", "No")),
        Wording(_CAUSAL_PAIR, ("yes", "no")),
        HubSource("nyu-mll/glue", "rte", Columns("sentence1", "sentence2"), ("train", "validation")),
        loss="hinge",
    ),
    "snli": TaskSpec(
        "SNLI: entailment, neutral or contradiction",
        ("entailment", "neutral", "contradiction"),
        Wording(_PAIR, ("Yes", "Maybe", "No")),
        Wording(_CAUSAL_PAIR, ("yes", "maybe", "no")),
        HubSource("stanfordnlp/snli", None, Columns("premise", "hypothesis")),
        loss="hinge",
    ),
    # Not in the paper: template and words are ours, the masked ones chosen on training rows (examples/RESULTS.md). The
    # hub's copy needs a script.
    "trec": TaskSpec(
        "TREC: what a question asks for",
        ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"),
        Wording("{prompt} . {mask} : {text}", ("Reason", "Animal", "Short", "Person", "Location", "Amount")),
        Wording(
            "{prompt} . {text} The question above asks for {mask}",
            ("description", "entity", "abbreviation", "human", "location", "number"),
        ),
        hub=None,
    ),
}


def task_spec(name: str) -> TaskSpec:
    """A built-in task by name.

    Raises:
        ConfigError: no such task; the nearest valid name is suggested.
    """
    if name not in TASKS:
        raise ConfigError(unknown("task", name, TASKS))
    return TASKS[name]


def builtin_task(name: str, kind: str) -> Task:
    """A built-in task worded for a `masked` or `causal` LM or an `encoder-decoder`."""
    return task_spec(name).task(name, kind)
