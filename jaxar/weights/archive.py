"""The members of a ZIP archive of `torch.save` or `np.savez`, and their positions in the file.

Only the directory and the local headers are read. Names, offsets and sizes are checked against each
other and against the file before anything is unpacked.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5.
"""

import struct

from jaxar.weights.storage import AGAIN, DEFLATE_RATIO, DISTRUST, Reader, Span
from jaxar.weights.tables import WeightsError

MAX_MEMBERS = 100_000
"""Members of an archive; the largest released model here has 1,000 tensors."""
MAX_DIRECTORY = 32 << 20
"""Bytes of the directory of an archive."""

LOCAL, ENTRY, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
LOCATOR_64, END_64 = b"PK\6\7", b"PK\6\6"
STORED, DEFLATED = 0, 8
MAX_COMMENT = (1 << 16) - 1
FULL_16, FULL_32 = (1 << 16) - 1, (1 << 32) - 1
"""Placeholders for values that are stored in the 64-bit record."""


def members(reader: Reader, *, packed: bool) -> dict[str, Span]:
    """Returns the span of each member by name, in the order of the directory.

    Args:
      reader: The file.
      packed: Whether members may be compressed.

    Raises:
      WeightsError: names repeat or leave the archive, members overlap, leave the file or claim more
        bytes than they can hold, there are too many, or the file is not an archive.
    """
    count, size, start = _directory(reader)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise WeightsError(f"is an archive of {count} members; {DISTRUST}")
    directory, at = reader.take(start, size), 0
    spans: dict[str, Span] = {}
    taken: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            name, header, span, at = _entry(directory, at)
            parts = name.replace("\\", "/").split("/")
            if name in spans or ".." in parts or parts[0] == "" or ":" in name or "\0" in name:
                raise WeightsError(f"holds a member with the name {name[:100]!r}; {DISTRUST}")
            if span.packed is not None and not packed:
                raise WeightsError(f"holds compressed tensors; {DISTRUST}")
            begin = header + _local_size(reader, header, name.encode())
            spans[name] = span._replace(start=begin)
            taken.append((header, begin + (span.size if span.packed is None else span.packed)))
    except (struct.error, UnicodeDecodeError) as error:
        raise WeightsError(f"has a directory that cannot be read; {AGAIN}") from error
    taken.sort()
    limits = [header for header, _ in taken[1:]] + [start]
    if any(end > limit for (_, end), limit in zip(taken, limits, strict=True)):
        raise WeightsError(f"holds members that overlap; {DISTRUST}")
    return spans


def _directory(reader: Reader) -> tuple[int, int, int]:
    """Returns the number of members, and the size and start of the directory."""
    size = min(reader.size, 22 + MAX_COMMENT)
    base = reader.size - size
    tail = reader.take(base, size)
    at = tail.rfind(END, 0, max(0, size - 18))
    if at < 0:
        raise WeightsError(f"is an archive without its end; {AGAIN}")
    count, length, start = struct.unpack_from("<HII", tail, at + 10)
    if count == FULL_16 or FULL_32 in (length, start):
        if at < 20 or tail[at - 20 : at - 16] != LOCATOR_64:
            raise WeightsError(f"is an archive without its end; {AGAIN}")
        (place,) = struct.unpack_from("<Q", tail, at - 12)
        record = reader.take(place, 56)
        if record[:4] != END_64:
            raise WeightsError(f"is an archive without its end; {AGAIN}")
        count, length, start = struct.unpack_from("<QQQ", record, 32)
    return count, length, start


def _entry(directory: bytes, at: int) -> tuple[str, int, Span, int]:
    """Returns name, local header offset, span without its start, and offset of the next entry."""
    if directory[at : at + 4] != ENTRY:
        raise WeightsError(f"has a directory that cannot be read; {AGAIN}")
    flags, method = struct.unpack_from("<HH", directory, at + 8)
    crc, packed, size, names, extras, comments = struct.unpack_from("<IIIHHH", directory, at + 16)
    (header,) = struct.unpack_from("<I", directory, at + 42)
    name = directory[at + 46 : at + 46 + names].decode("utf-8")
    extra = directory[at + 46 + names : at + 46 + names + extras]
    size, packed, header = _wide(extra, [size, packed, header])
    if flags & 0x1 or method not in (STORED, DEFLATED):
        raise WeightsError(f"holds members that are encrypted or packed unusually; {DISTRUST}")
    if (method == STORED and packed != size) or size > DEFLATE_RATIO * packed:
        raise WeightsError(f"holds a member that claims more than it can hold; {DISTRUST}")
    span = Span(0, size, crc, packed if method == DEFLATED else None)
    return name, header, span, at + 46 + names + extras + comments


def _wide(extra: bytes, numbers: list[int]) -> list[int]:
    """Returns the values; placeholders are replaced, in order, from the 64-bit extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(range(at + 4, at + 4 + size - 7, 8))
            return [
                struct.unpack_from("<Q", extra, next(wide, len(extra)))[0] if n == FULL_32 else n
                for n in numbers
            ]
        at += 4 + size
    return numbers


def _local_size(reader: Reader, header: int, name: bytes) -> int:
    """Returns the size of a local header; its extra field has its own length."""
    local = reader.take(header, 30 + len(name))
    names, extras = struct.unpack_from("<HH", local, 26)
    if local[:4] != LOCAL or names != len(name) or local[30:] != name:
        raise WeightsError(f"has a directory that disagrees with its members; {AGAIN}")
    return 30 + names + extras
