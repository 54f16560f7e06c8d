"""Settings as strict models: what a run is told in a file, section by section.

A method names the sections that it reads as fields of its own (`bbt.methods.base`), so that `budget` under a method
that has none is the same error as a misspelt key. The defaults are those of `preset: default`: what we found to
generalise best with 16 rows a class (examples/RESULTS.md).
"""

from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from bbt.names import Table


class Strict(BaseModel):
    """A model to which unknown keys, infinite numbers, and yes or no for a number are errors, and whose values never
    change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("need a number (YAML reads yes, no, on, off, true and false as truth values)")
        return value


ScoredBy: TypeAlias = Literal["label_words", "likelihood", "mean_likelihood", "generation"]
"""The ways to score a task: see `bbt.tasks.Task`; `generation` is for tasks whose template has a `{target}`."""


def by_likelihood(scored_by: str) -> bool:
    """Whether whole labels are scored by their likelihood, and not label words."""
    return scored_by in ("likelihood", "mean_likelihood")


class DecodingConfig(Strict):
    """The section `task.decoding`: how text is generated. What is not set is as the task has it
    (`bbt.backend.Decoding`)."""

    max_new_tokens: int | None = Field(None, ge=1)
    """The most tokens of a generated text."""
    stop: tuple[str, ...] | None = None
    """The strings that end a text: it ends before the first of them, or at the model's end of sequence."""
    n_beams: int | None = Field(None, ge=1)
    """The number of beams of a beam search; with 1 the text is decoded greedily or sampled."""
    sample: bool | None = None
    """Whether each token is drawn instead of the likeliest being taken."""
    temperature: float | None = Field(None, gt=0)
    """The temperature of the draw."""
    top_p: float | None = Field(None, gt=0, le=1)
    """The probability that the likeliest tokens, from which is drawn, have together."""
    seed: int | None = Field(None, ge=0, lt=2**32)
    """The seed of the draw."""

    @field_validator("stop")
    @classmethod
    def _some(cls, stop: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Refuse an empty string, which stands everywhere in a text."""
        if stop and "" in stop:
            raise ValueError("need strings that are not empty")
        return stop


class TaskConfig(Strict):
    """A built-in task by name, a `module:SPEC` of the user's own, or a task that is described right here, for which
    `template` and `label_words` are needed, or a `template` that ends in `{target}`."""

    name: str = "sst2"
    """The built-in task's name, a `module:SPEC`, or any name for a task described here."""
    template: str | None = None
    """Text with the slots {prompt} or {start}, {text}, {text_pair} and {mask}; or {prompt} or {start}, {source},
    {source_pair} and, last, {target}."""
    label_words: tuple[str, ...] | None = None
    """(K,) words of one token each, in label order; of several where labels are scored by likelihood."""
    label_names: tuple[str, ...] | None = None
    """(K,) what answers call the labels (none: the label words)."""
    metrics: tuple[str, ...] | None = None
    """Names of metrics, or `module:function`; the first one selects prompts (none: the built-in task's, or
    accuracy)."""
    label_space: bool = True
    """Whether masked LMs take the label words with the space before them, as the template writes it; the released BBT
    code takes RoBERTa's without."""
    scored_by: ScoredBy = "label_words"
    """How labels are scored: by the logit of their word, or on causal LMs and encoder-decoders by the likelihood of
    their several tokens, or by its mean over the tokens. A task with a {target} has no labels and is scored by
    generation, also where nothing is said."""
    decoding: DecodingConfig = DecodingConfig()
    """How the text in the target's place is generated."""


def _number_as_text(value: object) -> object:
    """Make a text of a number where a name may stand; a truth value (YAML's yes and no) stays one and is refused."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Name = Annotated[str, BeforeValidator(_number_as_text)]


class ColumnsConfig(Strict):
    """The columns of the user's data: their names, or in files without a header their numbers from the left, from 1
    on."""

    text: Name = "text"
    """The column of the text."""
    text_pair: Name | None = None
    """The column of the second text (none: rows have one text)."""
    label: Name = "label"
    """The column of the label."""
    source: Name | None = None
    """The column of the source, of a task with a {target}."""
    source_pair: Name | None = None
    """The column of its second text (none: it has one)."""
    target: Name | None = None
    """The column of the text to be generated; in jsonl and parquet it may hold a list of several right ones."""


class DataConfig(Strict):
    """The section `data`: where the rows come from."""

    source: Literal["bundled", "files", "huggingface", "memory"] = "bundled"
    """Where the rows are: bundled, in files, on the Hugging Face hub, or in memory, as they were handed to `bbt.tune`
    or to a `PromptClassifier`."""
    k: int | Literal["all"] = 16
    """The number of train rows a class, and of dev rows a class where no dev rows are given; or `all` train rows, where
    dev rows are given."""
    seed: int | None = Field(None, ge=0)
    """The seed that draws the k-shot split (none: the run's seed)."""
    train: str | None = None
    """The path of the file from which train rows, and dev rows where there is no `dev`, are drawn."""
    dev: str | None = None
    """The path of the file of dev rows, all of which are taken (none: they are drawn from `train`)."""
    test: str | None = None
    """The path of the file of test rows."""
    columns: ColumnsConfig | None = None
    """The columns of the user's data (none: those of the task's own data set on the hub, else those that
    `ColumnsConfig` names)."""
    header: bool = True
    """Whether the first line of a csv or tsv names its columns."""
    labels: tuple[Name, ...] | None = None
    """(K,) values of the label column, in label order (none: 0 to K - 1)."""
    path: str | None = None
    """The data set's name on the hub, or a folder in its format."""
    subset: str | None = None
    """The name of the data set's configuration on the hub (none: it has only one)."""
    splits: tuple[str, ...] | None = Field(None, min_length=2, max_length=3)
    """The names of the hub's splits for train and test, or for train, dev and test."""
    note: str | None = None
    """Which rows these are, for the tables."""
    clean: bool = False
    """Clean the texts of the built-in tasks whose data need it, as the released BBT code does (`TaskSpec.clean`)."""
    folds: int | None = Field(None, ge=2)
    """Train and dev rows are pooled and cut anew: dev is the `fold`-th of so many parts, train the others."""
    fold: int = Field(0, ge=0)
    """The number of the part that is dev, from 0 on."""

    @field_validator("k", mode="before")
    @classmethod
    def _some_or_all(cls, k: object) -> object:
        """Check `k` so that one sentence tells of both kinds of value."""
        if k != "all" and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
            raise ValueError("need a whole number of at least 1, or all")
        return k


class ModelConfig(Strict):
    """The section `model`: the model, and the backend that runs it."""

    backend: str = "local"
    """The backend's name (bbt ls backends), or `module:Class`."""
    name: str = "minilm-mlm"
    """A bundled model's name, a folder, a name on the hub, or what an endpoint calls the model."""
    options: dict[str, Any] = {}
    """The backend's own options."""


class MethodConfig(Strict):
    """The section `method`: a method and its own settings, which the method checks."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "black-box"
    """The method's name (bbt ls methods), or `module:Class`."""

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})


class PriceConfig(Strict):
    """The section `price`: money, in any currency."""

    up: float = Field(0.0, ge=0)
    """The money that a million tokens sent cost."""
    down: float = Field(0.0, ge=0)
    """The money that a million tokens received cost."""
    ceiling: float | None = Field(None, gt=0)
    """A search stops before the run, its test included, would have cost more than this (none: it does not)."""

    def of(self, tokens_up: float, tokens_down: float) -> float:
        """The money that these tokens cost."""
        return (tokens_up * self.up + tokens_down * self.down) / 1e6


class EvaluationConfig(Strict):
    """The section `evaluation`: what is tested when the method has ended."""

    rows: int | None = Field(None, ge=0)
    """The most test rows, the same draw for every run (none: all; 0: nothing is tested)."""
    references: bool = True
    """Whether what the method started from (the manual and the untuned prompt) is tested too."""
    also_test: dict[str, str | None] = {}
    """Other built-in tasks with the same labels, and the files of their rows (none: the bundled ones). For a task with
    a {target} it is any name, and a file with the columns of the task itself, or of the built-in task of that name."""


class PromptLength(Strict):
    """The section `prompt` of a method that only asks how long a soft prompt is."""

    n_prompt_tokens: int = Field(5, ge=1)
    """The number of prompt tokens T."""


class InstructionConfig(Strict):
    """The section `prompt` of the method `instruction`."""

    instruction: str | None = None
    """The words that stand in the prompt's place."""


class InitialPromptConfig(PromptLength):
    """The section `prompt` of a method that starts from a soft prompt p0."""

    init: str = "vocabulary"
    """Random `vocabulary` tokens, `random` normal vectors of the word embeddings' standard deviation, T tokens in the
    order of their `ids`, the given `text`, the `label_words`, the `answers` of the first train rows as the template has
    them, one a line (which tell a model what answers look like: Min et al. 2022, arXiv 2202.12837; where T holds few of
    them, the other rows tell what is tuned), `demonstrations`, the last T tokens of solved train rows in a random order
    (as in-context learning has them, Brown et al. 2020), or the path of a saved prompt."""
    first_id: int = Field(1000, ge=0)
    """The first token of `init: ids`; 1000 in the released BBT code."""
    text: str | None = None
    """The text of `init: text`, repeated or cut to T tokens, as answers and label words are."""
    n_screened: int = Field(10, ge=1)
    """How many random draws are scored, a query each; the one of lowest training loss is p0."""


class HardPromptConfig(InitialPromptConfig):
    """The section `prompt` of a search over p0 + A z whose prompts are rounded to words."""

    intrinsic_dim: int = Field(50, ge=1)
    """The intrinsic dimension d."""
    projection: Literal["uniform", "normal", "orthonormal"] = "normal"
    """How A (D, d) is drawn: see `bbt.spaces.soft.random_projection`."""
    scale: Literal["paper", "embeddings"] = "embeddings"
    """A's entries by the paper (1 / sqrt(d)) or by the released code's rule from the word embeddings' spread."""
    alpha: float = Field(1.0, gt=0)
    """The factor by which A's entries are multiplied."""


class PromptConfig(HardPromptConfig):
    """The section `prompt` of a search over soft prompts p = p0 + A z."""

    placement: Literal["embedding", "layernorm", "start"] = "embedding"
    """The prompt stands for word embeddings where the template says (`embedding`) or before everything, BOS and [CLS],
    too (`start`: PEFT's place, so that PEFT can take the prompt as it is); or A z is added after the embedding
    LayerNorm (`layernorm`, released code)."""


class TiedPromptConfig(PromptConfig):
    """The section `prompt` of Black-Box Tuning."""

    intrinsic_dim: int = Field(100, ge=1)
    """The intrinsic dimension d; in a hundred directions of one token there is more to be found than in fifty of five
    (examples/RESULTS.md)."""
    tied: bool = True
    """Whether z moves all prompt tokens alike, by one shift in R^H, instead of each by its own."""


class PopulationConfig(Strict):
    """The section `optimizer` of a search whose optimizer is one of the method's own settings."""

    population_size: int = Field(20, ge=2)
    """The number of candidates n."""


class OptimizerConfig(PopulationConfig):
    """The section `optimizer`, with what proposes candidates."""

    name: str = "cma-separable"
    """The optimizer's name, ours or nevergrad's (bbt ls optimizers), or `module:Class`."""
    sigma0: float = Field(1.0, gt=0)
    """The standard deviation of the first population."""
    bounds: tuple[float, float] | None = None
    """The lowest and the highest value of each coordinate of z (none: no limit)."""
    step_size_rule: Literal["csa", "tpa"] = "csa"
    """The rule by which CMA-ES adapts sigma."""
    learning_rate: float = Field(0.1, gt=0)
    """The zeroth-order estimate's step in units of sigma0."""
    asynchronous: bool = False
    """Whether a generation is whichever candidates are scored first, while half a generation more is under way, so that
    none waits for a straggler. Each candidate is then scored by a call of its own; several are at work at a time."""

    @field_validator("bounds")
    @classmethod
    def _around_zero(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        """Refuse bounds that leave out z = 0, where the search starts."""
        if bounds and not bounds[0] < 0 < bounds[1]:
            raise ValueError("need low < 0 < high")
        return bounds


CalibrationKind: TypeAlias = Literal["none", "fitted", "batch", "content-free"]
"""The ways to find class biases: see `bbt.scoring.calibration.class_biases`."""

LOSSES: Table = {
    "cross_entropy": ("bbt.scoring.losses:cross_entropy", "mean negative log-probability of the gold label"),
    "hinge": ("bbt.scoring.losses:hinge", "how far wrong labels come within a margin of the gold one"),
    "negative_metric": ("bbt.scoring.losses:negative_metric", "minus the task's first metric"),
}


class SmallPopulationConfig(OptimizerConfig):
    """The section `optimizer` of Black-Box Tuning: at a few hundred queries more generations are worth more than larger
    ones (examples/RESULTS.md)."""

    population_size: int = Field(12, ge=2)
    """The number of candidates n."""


class ObjectiveConfig(Strict):
    """The section `objective`, with the training loss."""

    loss: str | None = None
    """The loss's name: cross_entropy, hinge, negative_metric or `module:function` (none: the released code's choice for
    the task). Where text is generated it is cross_entropy, the mean over all tokens of the targets, or
    negative_metric."""
    margin: float = Field(2.0, gt=0)
    """The hinge's margin."""

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str | None) -> str | None:
        """Refuse a misspelt loss, before a model is loaded."""
        if loss is not None and loss not in LOSSES and ":" not in loss:
            raise ValueError(f"expected {', '.join(LOSSES)} or module:function")
        return loss


class BudgetConfig(Strict):
    """The section `budget`. A query is one candidate on the whole training set."""

    queries: int = Field(2000, ge=1)
    """The most train queries of the search."""
    dev_every: int = Field(100, ge=1)
    """The number of train queries between two dev checks."""
    patience: int | None = Field(None, ge=1)
    """The number of dev checks without a better candidate after which a run ends for good (none: it does not)."""


class CriterionConfig(Strict):
    """The section `selection` of a method that keeps the best of the states that dev judges."""

    by: Literal["metric", "loss"] = "loss"
    """What dev judges by: the task's first metric with ties broken by cross-entropy, or cross-entropy alone. Where
    `objective.loss` is negative_metric and nothing is said, it is the metric."""


class SelectionConfig(CriterionConfig):
    """The section `selection` of a search."""

    n_best: int = Field(1, ge=0)
    """How many candidates of lowest training loss since the last check are judged beside the distribution's mean."""
    baselines: bool = True
    """Whether the untuned prompt is judged too, and the manual prompt stays unless the best of all clearly beats it."""
    margin: float = Field(1.0, ge=0)
    """The standard errors of the difference on dev by which the manual prompt must be beaten."""
