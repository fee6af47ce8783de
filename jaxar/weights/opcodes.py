"""Plain data from a pickle, without executing it.

`pickletools.genops` splits a pickle into opcodes, which are interpreted here: they build dicts,
lists, tuples, sets, text, bytes and numbers. A global must be in a table of fixed meanings;
otherwise the file is refused before any tensor is read. Nothing is imported, no attribute is set,
and no method of an object in the file is called.
"""

from collections.abc import Callable, Iterator, Mapping
from pickletools import genops
from typing import Any, NamedTuple

import numpy as np

from jaxar.weights.storage import AGAIN, DISTRUST
from jaxar.weights.tables import WeightsError

MAX_PICKLE = 64 << 20
"""Largest pickle in bytes; a model of 1,000 tensors has 0.1 MB, with an optimiser 0.3 MB."""
MAX_OPCODES = 2_000_000
"""Most opcodes of one pickle, about 25 for a tensor; this many take some seconds."""
MAX_DEPTH = 1000
"""Most marks that are open at a time."""
MAX_COPIED = 1 << 24
"""Most items and bytes that globals may copy in total."""
MAX_KEY = 1 << 31
"""Bound on integer keys, and so on the hash collisions that a file could construct."""

Call = Callable[..., Any]


class Global(NamedTuple):
    """The meaning of a global of the table.

    Attributes:
      name: Name in the file.
      call: Function of its arguments; None if it cannot be called.
      value: A constant, such as the dtype of a storage.
    """

    name: str
    call: Call | None = None
    value: Any = None


class Namespace(dict):
    """The attributes of an `argparse.Namespace`, as a dict."""


class NumpyType:
    """A NumPy dtype; its byte order is set in a second step, as in a pickle."""

    def __init__(self, code: Any = None, *_: Any):
        if not isinstance(code, str) or code[:1] not in tuple("biufc") or not code[1:].isdigit():
            raise WeightsError(f"holds a NumPy dtype of objects or text; {DISTRUST}")
        self.dtype = np.dtype(code)

    def order(self, state: Any) -> None:
        """Sets the byte order from the second entry of the state that NumPy writes."""
        if not isinstance(state, tuple) or state[1:2] not in (("<",), (">",), ("|",), ("=",)):
            raise WeightsError(f"holds a NumPy dtype that cannot be read; {AGAIN}")
        self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, NumpyType) or not isinstance(data, bytes):
        raise WeightsError(f"holds a NumPy scalar that cannot be read; {AGAIN}")
    return np.frombuffer(data, kind.dtype, 1)[0].item()


def _encode(text: Any, encoding: Any = None) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise WeightsError(f"holds bytes in an unusual encoding; {DISTRUST}")
    return text.encode("latin1")


def _complex(real: Any, imaginary: Any = 0.0) -> complex:
    if not all(isinstance(part, int | float) for part in (real, imaginary)):
        raise WeightsError(f"holds an invalid complex number; {DISTRUST}")
    return complex(real, imaginary)


def _bytearray(data: Any = b"", encoding: Any = "latin1") -> bytes:
    return bytes(data) if isinstance(data, bytes) else _encode(data, encoding)


def _set(items: Any = ()) -> set:
    if not isinstance(items, list | tuple | set):
        raise WeightsError(f"holds an invalid set; {DISTRUST}")
    return {_key(item) for item in items}


def _ordered(pairs: Any = ()) -> dict:
    if not isinstance(pairs, list | tuple):
        raise WeightsError(f"holds an invalid dict; {DISTRUST}")
    return {_key(key): value for key, value in pairs}


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise WeightsError(f"holds an invalid path; {DISTRUST}")
    return "/".join(parts)


CALLS: dict[str, Call] = {
    "collections.OrderedDict": _ordered,
    "argparse.Namespace": Namespace,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.complex": _complex,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encode,
    "numpy.dtype": NumpyType,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "pathlib.PosixPath": _path,
    "pathlib._local.PosixPath": _path,
}
"""Globals of plain data, and the functions that replace them."""


def _key(value: Any) -> Any:
    """Returns a value that may be a key: one that always hashes and compares in constant time."""
    if value is None or type(value) in (str, bytes, bool):
        return value
    if type(value) is int and abs(value) < MAX_KEY:
        return value
    raise WeightsError(f"holds a dict with a key of type {type(value).__name__}; {DISTRUST}")


def interpret(
    stream: Any, names: Mapping[str, Global], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Returns the plain data of one pickle, and leaves the stream after it.

    Args:
      stream: Object with `read` and `readline`; read from its current position.
      names: Globals that may occur besides `CALLS`.
      persistent: persistent(id) -> the value of a persistent id; without it they are refused.

    Raises:
      WeightsError: the pickle is damaged, too large, or holds anything but plain data.
    """
    table = {name: Global(name, call) for name, call in CALLS.items()} | dict(names)
    machine = _Machine(table, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(genops(stream)):
            if count >= MAX_OPCODES:
                raise WeightsError(f"describes its tensors in too many steps; {DISTRUST}")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except WeightsError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise WeightsError(f"has an unreadable description of its tensors; {AGAIN}") from error


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, names: Mapping[str, Global], persistent: Callable[[Any], Any] | None):
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # a stack for each open mark
        self._memo: dict[int, Any] = {}
        self._names, self._persistent, self._copied = names, persistent, 0

    def step(self, name: str, argument: Any) -> None:
        """Executes one opcode."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in PUTS:
            self._put(len(self._memo) if argument is None else argument)
        elif name in GETS:
            self.stack.append(self._memo[argument])
        elif name in ACTIONS:
            ACTIONS[name](self)
        elif name in ("GLOBAL", "INST"):
            self.stack.append(self._find(argument.replace(" ", ".", 1)))
            if name == "INST":
                raise WeightsError(f"asks for an object by the opcode INST; {DISTRUST}")
        elif name not in SILENT:
            raise WeightsError(f"uses the opcode {name}, which no weights need; {DISTRUST}")

    def _find(self, name: str) -> Global:
        name = name.replace("__builtin__.", "builtins.", 1)
        if name not in self._names:
            raise WeightsError(f"asks for {name[:200]}, which no weights need; {DISTRUST}")
        return self._names[name]

    def _put(self, index: int) -> None:
        if not 0 <= index < MAX_OPCODES:
            raise WeightsError(f"numbers its values up to {index}; {DISTRUST}")
        self._memo[index] = self.stack[-1]

    def _copy(self, *values: Any) -> None:
        """Counts the items a call copies, so that a few bytes cannot grow into many."""
        self._copied += sum(len(v) for v in values if hasattr(v, "__len__"))
        if self._copied > MAX_COPIED:
            raise WeightsError(f"copies its values over and over; {DISTRUST}")

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def mark(self) -> None:
        """Opens a mark."""
        if len(self._below) >= MAX_DEPTH:
            raise WeightsError(f"nests its values too deeply; {DISTRUST}")
        self._below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Returns the values above the newest mark, and closes it."""
        items, self.stack = self.stack, self._below.pop()
        return items

    def join(self, count: int) -> None:
        """Replaces the topmost values by a tuple of them."""
        if len(self.stack) < count:
            raise IndexError("the stack is too short")
        items = tuple(self.stack[-count:])
        self.stack[-count:] = [items]

    def drop(self) -> None:
        """Removes the topmost value or the newest mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def append(self, items: list[Any]) -> None:
        """Appends to the list below."""
        if type(self.stack[-1]) is not list:
            raise TypeError("no list")
        self.stack[-1].extend(items)

    def add(self, items: list[Any]) -> None:
        """Adds to the set below."""
        if type(self.stack[-1]) is not set:
            raise TypeError("no set")
        self.stack[-1].update(_key(item) for item in items)

    def set(self, items: list[Any]) -> None:
        """Sets keys of the dict below."""
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise TypeError("no dict")
        for key, value in pairs(items):
            self.stack[-1][_key(key)] = value

    def call(self) -> None:
        """Replaces a global and its arguments by the result of the table's function."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or function.call is None or type(arguments) is not tuple:
            raise WeightsError(f"calls a function that no weights need; {DISTRUST}")
        self._copy(arguments, *arguments)
        self.stack.append(function.call(*arguments))

    def new(self) -> None:
        """Replaces a class and no arguments by an empty object."""
        if self.stack[-1] != ():
            raise WeightsError(f"makes an object with arguments; {DISTRUST}")
        self.call()

    def build(self) -> None:
        """Sets the state of a value, if the state is plain data."""
        state = self.stack.pop()
        value = self.stack[-1]
        if type(value) is Namespace and type(state) is dict:
            self._copy(state)
            value.update(state)
        elif type(value) is NumpyType:
            value.order(state)
        elif type(value) is not dict:  # an OrderedDict's attributes, e.g. `_metadata`, are ignored
            raise WeightsError(f"sets the state of a {type(value).__name__}; {DISTRUST}")

    def find(self) -> None:
        """Replaces a module and a name by their global."""
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("no names")
        self.stack.append(self._find(f"{module}.{name}"))

    def load(self) -> None:
        """Replaces a persistent id by its value."""
        if self._persistent is None:
            raise WeightsError(f"refers to values outside of its description; {DISTRUST}")
        self.stack.append(self._persistent(self.stack.pop()))


def pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Returns the pairs of key and value in a flat list."""
    return zip(items[::2], items[1::2], strict=True)


NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
TEXTS = (
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
)
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
VALUES = frozenset((*NUMBERS, *TEXTS, *BYTES))
"""Opcodes whose argument is the value."""
SILENT = frozenset(("PROTO", "FRAME", "STOP"))
PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
ACTIONS: dict[str, Callable[[_Machine], Any]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.marked,
    "DUP": lambda m: m.stack.append(m.stack[-1]),
    "TUPLE1": lambda m: m.join(1),
    "TUPLE2": lambda m: m.join(2),
    "TUPLE3": lambda m: m.join(3),
    "TUPLE": lambda m: m.push(tuple(m.marked())),
    "LIST": lambda m: m.push(m.marked()),
    "APPEND": lambda m: m.append([m.stack.pop()]),
    "APPENDS": lambda m: m.append(m.marked()),
    "DICT": lambda m: m.push({_key(k): v for k, v in pairs(m.marked())}),
    "SETITEM": lambda m: m.set([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m: m.set(m.marked()),
    "ADDITEMS": lambda m: m.add(m.marked()),
    "FROZENSET": lambda m: m.push({_key(item) for item in m.marked()}),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
    "STACK_GLOBAL": _Machine.find,
    "BINPERSID": _Machine.load,
}
