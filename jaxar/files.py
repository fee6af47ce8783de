"""Files that are complete or absent, even if the process is killed."""

import hashlib
import os
from pathlib import Path
from typing import Any


class Replacing:
    """A binary file that gets its name when the block ends without an error."""

    def __init__(self, path: str | Path):
        self._path, self._hidden = path, f"{path}.partial"

    def __enter__(self):
        self._file = open(self._hidden, "wb")
        return self._file

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._hidden, self._path)


def replace_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file."""
    with Replacing(path) as file:
        file.write(text.encode())


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
