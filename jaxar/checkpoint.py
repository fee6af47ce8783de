"""Checkpoints: orbax behind one small class.

A checkpoint holds the whole `TrainState` and a record of what made it. It is written in the
background and becomes visible whole or not at all.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxar import migrations, tree
from jaxar.config import ConfigError, format_of

FOLDER = "checkpoints"
CHUNK = 1 << 26
"""Bytes that a frugal save writes at a time."""


class Checkpoints:
    """The checkpoints of one working directory, by step."""

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep: int = 1,
        keep_every: int = 0,
        read_only: bool = False,
        frugal_for: Any = None,
    ):
        """Opens the folder; cleans it of what an earlier, killed run was writing.

        Args:
          workdir: Directory of the run.
          keep: How many of the newest checkpoints stay.
          keep_every: Steps whose checkpoints stay for ever: multiples of this; 0 for none.
          read_only: Whether to leave the folder as it is: a run may be writing there.
          frugal_for: Tree that is to be saved with little more memory than it takes itself: leaf
            by leaf, and not in the background.
        """
        limit = None
        if frugal_for is not None:
            largest = max(leaf.nbytes for leaf in jax.tree.leaves(frugal_for))
            limit = (largest + CHUNK) / 1e9
        self._chunk = CHUNK if limit else None
        self.folder = Path(workdir).absolute() / FOLDER
        if read_only:
            logging.getLogger("absl").addFilter(_not_about_reading)
            options = ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, max_to_keep=None, create=False
            )
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every or None,
                enable_async_checkpointing=limit is None,
                cleanup_tmp_directories=True,
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(
                    save_concurrent_gb=limit  # pyright: ignore: any number of bytes will do
                ),
                "record": ocp.JsonCheckpointHandler(),
            },
        )

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps there are, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Starts to write a checkpoint; nothing happens if the step is there already.

        Args:
          step: Steps taken.
          state: Tree of arrays.
          record: Small JSON-like values to find again at `record`; "format" is added to them.
        """
        if step in self._manager.all_steps():
            return
        chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=self._chunk), state)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, chunked),
            record=ocp.args.JsonSave({**record, "format": migrations.FORMAT}),
        )
        self._manager.save(step, args=items)

    def wait(self) -> None:
        """Returns when everything is written; raises if writing failed."""
        self._manager.wait_until_finished()

    def record(self, step: int) -> dict[str, Any]:
        """Returns what `save` was given beside the state.

        Raises:
          ConfigError: a newer version wrote it.
        """
        return {key: value for key, value in self._entries(step).items() if key != "format"}

    def names(self, step: int) -> dict[str, str]:
        """Returns what the leaves of a step's state are called now, by the paths they are kept at.

        Raises:
          ConfigError: a newer version wrote it.
        """
        return self._names(step, self._stored(step))

    def _stored(self, step: int) -> Any:
        """Returns shapes and dtypes of the state of a step, in its form and with its names."""
        return self._manager.item_metadata(step)["state"].tree

    def _names(self, step: int, stored: Any) -> dict[str, str]:
        return migrations.state(tree.paths(stored), self._entries(step).get("format", 0))

    def _entries(self, step: int) -> dict[str, Any]:
        """Returns the stored record, compared with the formats that are known."""
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        entries = self._manager.restore(step, args=args)["record"]
        format_of(entries, self.folder / str(step))
        return entries

    def restore(self, step: int, shapes: Any, *, part: str | None = None) -> Any:
        """Returns the state of a step, or one part of it.

        Args:
          step: One of `steps()`.
          shapes: Tree of `jax.ShapeDtypeStruct` with shardings: what is wanted, and where.
          part: Name of a field of the state, e.g. "ema", of which `shapes` is the tree; the rest
            is not read. It may have been kept in another dtype, and is cast.

        Raises:
          ConfigError: the stored tree, a shape or a dtype differs; lists every difference. Orbax
            would cast dtypes without a word.
        """
        stored = self._stored(step)
        names = self._names(step, stored)
        if part and part not in stored:
            raise ConfigError(
                f"Checkpoint {step} in {self.folder} holds converted weights, no {part!r}."
            )
        kept, wanted = ({part: stored[part]}, {part: shapes}) if part else (stored, shapes)
        given = {names[path]: leaf for path, leaf in tree.paths(kept).items()}
        problems = tree.differences(given, wanted, dtypes=part is None)
        if problems:
            raise ConfigError(
                f"Checkpoint {step} in {self.folder} is of another model:\n  "
                + "\n  ".join(problems)
            )
        if all(path == name for path, name in names.items()):
            state = self._read(step, wanted, partial=part is not None)
        else:
            state = self._read(step, _under(kept, names, wanted), partial=part is not None)
            state = _unflattened(wanted, {names[p]: leaf for p, leaf in tree.paths(state).items()})
        return state[part] if part else state

    def _read(self, step: int, wanted: Any, *, partial: bool) -> Any:
        """Returns the arrays of a tree of shapes, which may be a part of what is stored."""
        args = ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=partial,
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def close(self) -> None:
        """Waits for what is being written and frees the folder."""
        self._manager.close()


def exist(workdir: str | Path) -> bool:
    """Returns whether a directory holds any finished checkpoint."""
    # What is being written, or was cut short, has more in its name than the step.
    return any(path.name.isdigit() for path in (Path(workdir) / FOLDER).glob("*"))


def converted(workdir: str | Path) -> bool:
    """Returns whether the newest checkpoint holds converted weights and no training state."""
    checkpoints = Checkpoints(workdir, read_only=True)
    latest = checkpoints.latest()
    found = latest is not None and "weights" in checkpoints.record(latest)
    checkpoints.close()
    return found


def placed(shapes: Any, shardings: Any) -> Any:
    """Returns the shapes with their shardings, as `Checkpoints.restore` takes them."""
    return jax.tree.map(
        lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
        shapes,
        shardings,
    )


def _under(stored: Any, names: dict[str, str], wanted: Any) -> Any:
    """Returns the leaves of a tree in the form, and with the names, in which they are stored."""
    leaves, form = tree.paths(wanted), jax.tree.structure(stored)
    return jax.tree.unflatten(form, [leaves[names[path]] for path in tree.paths(stored)])


def _unflattened(like: Any, leaves: dict[str, Any]) -> Any:
    """Returns leaves, given by path, as a tree of another's form."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in tree.paths(like)])


def _not_about_reading(record: logging.LogRecord) -> bool:
    """Drops orbax's warning that a directory opened for reading is opened for reading."""
    return "read only" not in record.getMessage()
