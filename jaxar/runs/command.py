"""What the command line hands to the function of a verb."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxar import assembly
from jaxar.runs.abilities import require
from jaxar.runs.load import load
from jaxar.runs.model import Model
from jaxar.runs.setup import default_workdir
from jaxar.runs.verbs import Flags


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line that was read and checked.

    Attributes:
      flags: The values of its flags.
      config: The config with its fields set; None where --config is not given.
      overrides: Those fields, "key=value".
    """

    flags: Flags
    config: Any
    overrides: Sequence[str]

    @property
    def workdir(self) -> Path:
        """Folder of the run."""
        given = self.flags.workdir
        return Path(given) if given else default_workdir(self.config.name)

    def model(self, ability: str | None = None) -> Model:
        """Returns the model that the flags choose: of a run, or of released weights.

        Args:
          ability: What the model must be able to do, see `jaxar.runs.abilities`.

        Raises:
          ConfigError: there is no such model, or it cannot do that.
        """
        flags = self.flags
        if ability is not None:
            require(assembly.build_system(self.config), ability, self.config.name)
        if flags.weights:
            return load(
                str(flags.config), weights=flags.weights, step=flags.step, overrides=self.overrides
            )
        return load(
            self.config.name, workdir=self.workdir, step=flags.step, overrides=self.overrides
        )
