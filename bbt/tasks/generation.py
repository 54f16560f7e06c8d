"""Tasks whose answer is a text: question answering, summarization, translation, and those of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bbt.backend import Decoding, Row
from bbt.errors import ConfigError
from bbt.settings import ScoredBy
from bbt.tasks.examples import Columns, Example
from bbt.tasks.sequence_metrics import References, load_sequence_metric
from bbt.tasks.task import Task
from bbt.tasks.template import Template


@dataclass(frozen=True)
class GenerationTask(Task):
    """What is asked of a model that answers in its own words. It has no labels.

    A row's target is its first reference and the first string of `decoding.stop`, by which the model is to end it;
    where a newline ends it, a target's own lines are put into one.

    Raises:
        ConfigError: a template without `{target}`, or an unknown metric.
    """

    label_names: tuple[str, ...] = ()
    """The names of the labels, of which there are none."""
    label_words: tuple[str, ...] = ()
    """The words of the labels, of which there are none."""
    metrics: tuple[str, ...] = ("token_f1",)
    """The names of metrics of generated text; the first one selects prompts."""
    scored_by: ScoredBy = "generation"
    """The task is scored by what is generated."""
    decoding: Decoding = field(default_factory=Decoding)
    """How text is generated."""

    def __post_init__(self) -> None:
        if not self.template.takes_target:
            raise ConfigError(f"task {self.name}: the template {self.template.source!r} has no {{target}} at its end.")
        for metric in self.metrics:
            load_sequence_metric(metric)

    def rows(self, examples: Sequence[Example], n_prompt_tokens: int) -> list[Row]:
        """Render examples as segments that end in their targets."""
        return [self.template.render(e.text, e.text_pair, n_prompt_tokens, self._target(e)) for e in examples]

    def answered(self, example: Example) -> str:
        """Return an example's answer as the template has it, with the words between its source and it alone."""
        return f"{self.template.lead}{self._target(example)}".strip()

    def text_metric(self, texts: Sequence[str], examples: Sequence[Example]) -> float:
        """Compute the metric that selects prompts, in [0, 1]."""
        return load_sequence_metric(self.metrics[0])(texts, references(examples))

    def evaluate_texts(self, texts: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Compute every metric of the task by name."""
        return {name: load_sequence_metric(name)(texts, references(examples)) for name in self.metrics}

    def _target(self, example: Example) -> str:
        if not example.targets:
            return ""
        stop, target = self.decoding.stop, example.targets[0].strip()
        return ("".join((" ".join(target.split()) if "\n" in stop else target, *stop[:1]))) if target else ""


def references(examples: Sequence[Example]) -> References:
    """Collect the texts that each example may be answered with."""
    return [example.targets for example in examples]


@dataclass(frozen=True)
class GenerationSpec:
    """A built-in task whose answer is a text, and where its data stands on the Hugging Face hub."""

    title: str
    """What the task is, in one line."""
    template: str
    """The template's text for causal LMs; it is ours where nothing else is said."""
    encoder_decoder: str
    """The template's text for encoder-decoders, as T5 was trained on such tasks (Raffel et al. 2020, appendix D)."""
    columns: Columns
    """The columns of its data set, and of files of it."""
    metrics: tuple[str, ...]
    """The names of its metrics; the first one selects prompts."""
    decoding: Decoding
    """How its answers are generated."""
    path: str
    """The data set's name on the hub."""
    subset: str | None = None
    """The name of the data set's configuration on the hub (none: it has only one)."""
    splits: tuple[str, ...] = ("train", "validation")
    """The names of the splits for train and test."""

    def task(self, name: str, kind: str) -> GenerationTask:
        """Make the task, called `name`, worded for a `causal` LM or an `encoder-decoder`."""
        template = Template(self.encoder_decoder if kind == "encoder-decoder" else self.template)
        return GenerationTask(name, template, metrics=self.metrics, decoding=self.decoding)


GENERATION_TASKS: dict[str, GenerationSpec] = {
    "squad": GenerationSpec(
        "SQuAD: a question about a paragraph, answered by words of it",
        "{prompt} {source}\nQuestion: {source_pair}\nAnswer: {target}",
        "{prompt} question: {source_pair} context: {source} {target}",
        Columns("context", "question", target="answers"),
        ("token_f1", "exact_match"),
        Decoding(max_new_tokens=16),
        "rajpurkar/squad",
    ),
    "cnn-dailymail": GenerationSpec(
        "CNN/DailyMail: an article's highlights",
        "{prompt} {source}\nTL;DR: {target}",  # as GPT-2 was asked (Radford et al. 2019, section 3.6)
        "{prompt} summarize: {source} {target}",
        Columns("article", target="highlights"),
        ("rougeL", "rouge1", "rouge2"),
        Decoding(max_new_tokens=100),
        "abisee/cnn_dailymail",
        "3.0.0",
        ("train", "test"),
    ),
    "translation-en-de": GenerationSpec(
        "English to German, sentence by sentence",
        "{prompt} English: {source}\nGerman: {target}",
        "{prompt} translate English to German: {source} {target}",
        Columns("en", target="de"),
        ("bleu", "chrf"),
        Decoding(max_new_tokens=64),
        "bentrevett/multi30k",
        None,
        ("train", "test"),
    ),
}
"""The built-in tasks whose answer is a text, by name."""
