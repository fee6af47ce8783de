"""The result of a run: what `result.json` holds, and the evaluation that measures its figures."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxar import tree
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.files import replace_text
from jaxar.parallel import distributed
from jaxar.runs.model import Model
from jaxar.training.progress import read_history

RESULT = "result.json"


@runtime_checkable
class Evaluation(Protocol):
    """A part of kind "evaluation", which measures a model."""

    @property
    def complete(self) -> bool:
        """Whether everything it needs is named, so that training can end with it."""
        ...

    def check(self, model: Model) -> None:
        """Checks, before a model is trained, that `run` will find all that it needs.

        Args:
          model: The model; its parameters are not looked at.

        Raises:
          ConfigError: something is missing, or the model cannot be evaluated so.
        """
        ...

    def run(self, model: Model, folder: Path) -> dict[str, Any]:
        """Returns the figures of a model with the protocol that they were measured by.

        Args:
          model: The model.
          folder: Folder of the run; what is kept for the next call goes there.

        Raises:
          ConfigError: see `check`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class NoEvaluation:
    """Training ends without figures."""

    complete = False

    def check(self, model: Model) -> None:
        """Raises ConfigError: there is nothing to measure."""
        raise ConfigError(
            "config.evaluation is 'none': small labelled data sets can be judged with "
            "--config.evaluation='recognition(per_class=100)', any with 'fidelity(samples=50000)'."
        )

    def run(self, model: Model, folder: Path) -> dict[str, Any]:
        """Raises ConfigError: there is nothing to measure."""
        self.check(model)
        return {}


def result_of(model: Model, folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `result.json`: facts about a run, and the figures of an evaluation.

    Nothing in it depends on when or how fast it was made, so a repeated run gives the same file.

    Args:
      model: The model of the run.
      folder: Folder of the run.
      figures: Figures to add.
    """
    history = read_history(folder)
    return {
        "config": model.config.name,
        "step": model.step,
        "parameters": tree.count(model.params),
        "training_loss": history[-1]["loss"] if history else None,
        **figures,
    }


def write_result(model: Model, folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Returns what `result.json` of a run now holds; see `result_of`."""
    result = result_of(model, folder, figures)
    if distributed.first():
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
        say("written", str(folder / RESULT))
    return result
