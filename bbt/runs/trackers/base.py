"""What all trackers share: which figures there are, what they are called, and that no failure of a tracker costs the
run."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbt.errors import ConfigError
from bbt.runs.convergence import convergence_figure
from bbt.runs.observer import Observer, Progress
from bbt.runs.report import cost_rows, result_rows, selected_line
from bbt.types import Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Closing:
    """What a tracker keeps of a run that has ended."""

    figures: dict[str, float]
    """The test's metrics by name, in [0, 1], and the costs."""
    table: list[tuple[str, ...]]
    """The closing table, its head first: one row for each prompt."""
    selected: str
    """The sentence that names the candidate that dev chose."""
    plot: "Figure"
    """The picture of its convergence."""

    @property
    def markdown(self) -> str:
        """The table and the sentence as Markdown."""
        head, *rows = ["| " + " | ".join(row) + " |" for row in self.table]
        return "\n".join([head, "|---" * len(self.table[0]) + "|", *rows, "", self.selected, ""])


class Tracker(Observer):
    """An observer that hands figures on. Where that fails the run goes on without it, and a warning says so.

    `train/...` stand against what is done (queries of a search, steps of a training), `dev/...` and `cost/...` against
    train queries.

    Raises:
        ConfigError: the tracker's package is missing.
    """

    name = ""
    """What a config calls it, which is the package that it needs, and the extra that installs that."""

    def __init__(self) -> None:
        try:
            import_module(self.name)
        except ImportError as error:
            needs = f"needs the package {error.name}: pip install 'bbt-prompt[{self.name}]'."
            raise ConfigError(f"the observer {self.name} {needs}") from error
        self._config: Mapping[str, Any] = {}
        self._folder: Path | None = None
        self._events: list[Event] = []  # what the plot is drawn from
        self._lost = False

    @abstractmethod
    def begin(self, title: str, config: dict[str, Any], folder: Path | None) -> None:
        """Begin a run of that title; `config` has dotted keys, and `folder` is the run's, if it has one."""

    @abstractmethod
    def log(self, figures: dict[str, float], step: int) -> None:
        """Keep figures by name, all of them finite, at a step."""

    @abstractmethod
    def end(self, closing: Closing | None) -> None:
        """Keep what the run has come to, and close it; None where it has stopped before its end."""

    def configured(self, config: Mapping[str, Any]) -> None:
        """Keep the config until the run begins."""
        self._config, self._folder = config, None

    def opened(self, folder: Path) -> None:
        """Keep the folder until the run begins."""
        self._folder = folder

    def recorded(self, event: Event) -> None:
        """Begin with the log's first event; hand on what dev says, and what it has cost."""
        if event["event"] == "start":
            self._events, self._lost = [], False
            self._try(lambda: self.begin(self._title, dict(flat(self._config)), self._folder))
        self._events.append(event)
        if event["event"] == "dev":
            self._keep({**dev_figures(event), **costs(event["ledger"])}, event["ledger"]["train_queries"])

    def progressed(self, progress: Progress) -> None:
        """Hand on the training loss, and the best dev metric so far."""
        best = {} if progress.best_metric is None else {"train/best dev metric": progress.best_metric}
        self._keep({"train/loss": progress.train_loss, **best}, progress.done)

    def finished(self, result: Mapping[str, Any] | None) -> None:
        """Hand on what the run has come to."""
        if self._events:
            self._try(lambda: self.end(None if result is None else self._closing(dict(result))))

    @property
    def _title(self) -> str:
        """The run folder's name, or one that is made of what is run."""
        c = self._config
        return self._folder.name if self._folder else f"{c['task']['name']}-{c['method']['name']}-seed{c['seed']}"

    def _closing(self, result: dict[str, Any]) -> Closing:
        plot = convergence_figure(self._events, result, self._title)
        tests = {f"test/{name}/{key}": value for name, found in result["test"].items() for key, value in found.items()}
        chosen = {"selected/dev metric": result["selected"]["metric"], "selected/dev loss": result["selected"]["loss"]}
        figures = {**tests, **chosen, **costs(result["cost"])}
        table = result_rows(result)
        lines = "\n".join(["", "", *(f"- {name}: {value}" for name, value in cost_rows(result))])
        return Closing(figures, table, selected_line(result) + lines, plot)

    def _keep(self, figures: Mapping[str, float], step: int) -> None:
        self._try(lambda: self.log({name: value for name, value in figures.items() if math.isfinite(value)}, step))

    def _try(self, act: Callable[[], None]) -> None:
        """Do it, or say once that the run goes on without the tracker."""
        if self._lost:
            return
        try:
            act()
        except Exception as error:  # whatever it is, the run counts
            self._lost = True
            LOG.warning("the run goes on without %s: %s: %s", self.name, type(error).__name__, error)


def dev_figures(event: Event) -> dict[str, float]:
    """The best metric and the lowest loss of a dev check, those of the manual prompt apart."""
    figures: dict[str, float] = {}
    for who, metric, loss in zip(event["names"], event["metrics"], event["losses"], strict=True):
        group = "dev/manual" if who == "manual" else "dev/best"
        figures[f"{group} metric"] = max(metric, figures.get(f"{group} metric", 0.0))
        if loss is not None:
            figures[f"{group} loss"] = min(loss, figures.get(f"{group} loss", math.inf))
    return figures


def costs(ledger: Mapping[str, float]) -> dict[str, float]:
    """A ledger's counts as figures."""
    return {f"cost/{name.replace('_', ' ')}": value for name, value in ledger.items()}


def flat(tree: Mapping[str, Any], above: str = "") -> "dict[str, Any]":
    """A config with dotted keys, e.g. `budget.queries`."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values.update(flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value})
    return values
