"""Plain data out of a pickle, without running any of it.

`pickletools.genops` only splits a pickle into opcodes. What they mean is decided here: they build
dicts, lists, tuples, sets, text, bytes and numbers; a global is one of a table of fixed meanings or
the file is refused, before a single number of a tensor is read. Nothing is imported, no attribute
is set, and no method of an object in the file is called.
"""

from collections.abc import Callable, Iterator, Mapping
from pickletools import genops
from typing import Any, NamedTuple

import numpy as np

from jaxar.weights.storage import AGAIN, DISTRUST
from jaxar.weights.tables import WeightsError

MAX_PICKLE = 64 << 20
"""Bytes of one pickle; that of a model of 1,000 tensors has 0.1 MB, with an optimiser 0.3 MB."""
MAX_OPCODES = 2_000_000
"""Opcodes of one pickle, about 25 for a tensor; this many take some seconds."""
MAX_DEPTH = 1000
"""Marks that are open at a time."""
MAX_COPIED = 1 << 24
"""Items and bytes that globals may copy in all."""
MAX_KEY = 1 << 31
"""Bound of integers as keys, and with it of collisions that a file could arrange."""

Call = Callable[..., Any]


class Global(NamedTuple):
    """What a global of the table stands for.

    Attributes:
      name: As in the file.
      call: What it makes of its arguments; None if it cannot be called.
      value: A constant, such as the dtype of a storage.
    """

    name: str
    call: Call | None = None
    value: Any = None


class Namespace(dict):
    """The attributes of an `argparse.Namespace`, as a dict."""


class NumpyType:
    """A NumPy dtype; its byte order follows in a second step, as in a pickle."""

    def __init__(self, code: Any = None, *_: Any):
        if not isinstance(code, str) or code[:1] not in tuple("biufc") or not code[1:].isdigit():
            raise WeightsError(f"holds a NumPy dtype of objects or text; {DISTRUST}")
        self.dtype = np.dtype(code)

    def order(self, state: Any) -> None:
        """Sets the byte order: the second entry of the state that NumPy writes."""
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
        raise WeightsError(f"holds a number that is none; {DISTRUST}")
    return complex(real, imaginary)


def _bytearray(data: Any = b"", encoding: Any = "latin1") -> bytes:
    return bytes(data) if isinstance(data, bytes) else _encode(data, encoding)


def _set(items: Any = ()) -> set:
    if not isinstance(items, list | tuple | set):
        raise WeightsError(f"holds a set of no items; {DISTRUST}")
    return {_key(item) for item in items}


def _ordered(pairs: Any = ()) -> dict:
    if not isinstance(pairs, list | tuple):
        raise WeightsError(f"holds a dict of no pairs; {DISTRUST}")
    return {_key(key): value for key, value in pairs}


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise WeightsError(f"holds a path that is none; {DISTRUST}")
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
"""Globals of plain data, with what stands for them here."""


def _key(value: Any) -> Any:
    """Returns a value that may be a key: one that is compared at once, whatever the file does."""
    if value is None or type(value) in (str, bytes, bool):
        return value
    if type(value) is int and abs(value) < MAX_KEY:
        return value
    raise WeightsError(f"holds a dict with a key of type {type(value).__name__}; {DISTRUST}")


def interpret(
    stream: Any, names: Mapping[str, Global], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Returns the plain data of one pickle; the stream stands behind it afterwards.

    Args:
      stream: Has `read` and `readline`; read from where it stands.
      names: Globals that may occur besides `CALLS`.
      persistent: Makes a value of a persistent id; without it they are refused.

    Raises:
      WeightsError: the pickle is damaged, too large, or asks for anything but plain data.
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
        raise WeightsError(f"describes its tensors in no readable way; {AGAIN}") from error


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, names: Mapping[str, Global], persistent: Callable[[Any], Any] | None):
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # a stack for each open mark
        self._memo: dict[int, Any] = {}
        self._names, self._persistent, self._copied = names, persistent, 0

    def step(self, name: str, argument: Any) -> None:
        """Carries out one opcode."""
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
            raise WeightsError(f"asks for {name[:200]}, which is no part of weights; {DISTRUST}")
        return self._names[name]

    def _put(self, index: int) -> None:
        if not 0 <= index < MAX_OPCODES:
            raise WeightsError(f"numbers its values up to {index}; {DISTRUST}")
        self._memo[index] = self.stack[-1]

    def _copy(self, *values: Any) -> None:
        """Counts what a call copies, so that few bytes cannot grow into many."""
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
        """Returns what stands above the newest mark, and closes it."""
        items, self.stack = self.stack, self._below.pop()
        return items

    def join(self, count: int) -> None:
        """Makes a tuple of the topmost values."""
        if len(self.stack) < count:
            raise IndexError("the stack is too short")
        items = tuple(self.stack[-count:])
        self.stack[-count:] = [items]

    def drop(self) -> None:
        """Takes the topmost value, or the newest mark, away."""
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
        """Replaces a global and its arguments by what the table makes of them."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or function.call is None or type(arguments) is not tuple:
            raise WeightsError(f"calls what is no function of weights; {DISTRUST}")
        self._copy(arguments, *arguments)
        self.stack.append(function.call(*arguments))

    def new(self) -> None:
        """Replaces a class and no arguments by an empty object."""
        if self.stack[-1] != ():
            raise WeightsError(f"makes an object with arguments; {DISTRUST}")
        self.call()

    def build(self) -> None:
        """Gives a value its state, where that is plain data too."""
        state = self.stack.pop()
        value = self.stack[-1]
        if type(value) is Namespace and type(state) is dict:
            self._copy(state)
            value.update(state)
        elif type(value) is NumpyType:
            value.order(state)
        elif type(value) is not dict:  # an OrderedDict's attributes, as `_metadata`, say nothing
            raise WeightsError(f"sets the state of a {type(value).__name__}; {DISTRUST}")

    def find(self) -> None:
        """Replaces a module and a name by their global."""
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("no names")
        self.stack.append(self._find(f"{module}.{name}"))

    def load(self) -> None:
        """Replaces a persistent id by what it stands for."""
        if self._persistent is None:
            raise WeightsError(f"refers to values outside of its description; {DISTRUST}")
        self.stack.append(self._persistent(self.stack.pop()))


def pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Returns items by twos: a key and its value."""
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
