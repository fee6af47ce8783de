"""Properties of TPU chips, and the names of topologies made of them.

Sources, per chip: Cloud TPU documentation, pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" (memory,
peak rate, bandwidths); arXiv 2304.01433, table 4 (v4: 6 links of 50 GB/s, 1,050 MHz). Values that
are not published there are derived:

  usable memory   the limit that libtpu 0.0.42.1 reports when a program does not fit
  clock           peak rate / (operations of the matrix units per cycle): 197e12 / (4 x 2 x 128^2)
                  for v5e, 459e12 / (8 x 2 x 128^2) for v5p. For v6e, with the published two units
                  of 256^2, this gives 3.5 GHz. The table has half of it: the compiler's cycles for
                  products of 4096^3 are then 87 % of peak, near the 88 to 97 % of the other chips.
  result          from peak rate, clock and the result vectors in the code of a product of 4096^3:
                  8.0, and 2.0 for v6e; v4 is like v5p
"""

import dataclasses
import re
from difflib import get_close_matches

GIB = 1 << 30


class LaunchError(ValueError):
    """A request that cannot work; the message says what is wrong and what to do."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip.

    Attributes:
      name: Name in topologies.
      kind: JAX's `device_kind`.
      memory: Bytes of HBM.
      usable: Bytes of HBM that the compiler gives to a program.
      flops: Peak rate of bfloat16 matrix products, operations a second.
      bandwidth: HBM bandwidth, bytes a second.
      ici: Bandwidth of all links to other chips together, bytes a second in one direction.
      dimensions: Dimensions of the torus that the links form.
      dcn: Bandwidth of the data-centre network, bytes a second in one direction; None if not
        published.
      clock: Cycles a second.
      result: Cycles of a matrix unit for a vector (8 x 128) of results.
      options: Options for the compiler's topology: v4 treats its two cores as one chip only on
        request.
    """

    name: str
    kind: str
    memory: int
    usable: int
    flops: float
    bandwidth: float
    ici: float
    dimensions: int
    dcn: float | None
    clock: float
    result: int
    options: tuple[tuple[str, str], ...] = ()


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="TPU v4",
            memory=32 * GIB,
            usable=int(30.75 * GIB),
            flops=275e12,
            bandwidth=1200e9,
            ici=300e9,
            dimensions=3,
            dcn=None,
            clock=1.05e9,
            result=8,
            options=(("chip_config_name", "megacore"),),
        ),
        Chip(
            name="v5e",
            kind="TPU v5 lite",
            memory=16 * GIB,
            usable=int(15.75 * GIB),
            flops=197e12,
            bandwidth=819e9,
            ici=200e9,
            dimensions=2,
            dcn=3.125e9,
            clock=1.5e9,
            result=8,
        ),
        Chip(
            name="v5p",
            kind="TPU v5",
            memory=96 * GIB,
            usable=int(95.74 * GIB),
            flops=459e12,
            bandwidth=2765e9,
            ici=600e9,
            dimensions=3,
            dcn=6.25e9,
            clock=1.75e9,
            result=8,
        ),
        Chip(
            name="v6e",
            kind="TPU v6 lite",
            memory=32 * GIB,
            usable=int(31.25 * GIB),
            flops=918e12,
            bandwidth=1638e9,
            ici=400e9,
            dimensions=2,
            dcn=12.5e9,
            clock=1.75e9,
            result=2,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A torus of chips, or several such slices joined by the data-centre network.

    Attributes:
      chip: Its kind of chip.
      shape: Chips along each dimension of a slice.
      slices: Number of slices.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """The number of chips in all slices."""
        count = self.slices
        for size in self.shape:
            count *= size
        return count

    @property
    def name(self) -> str:
        """The name on the command line: "v5e:16x16", "2 x v5e:16x16"."""
        one = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return one if self.slices == 1 else f"{self.slices} x {one}"


def parse_topology(name: str, slices: int = 1) -> Topology:
    """Returns the topology of a name such as "v5e:16x16", "v5p:4x4x8" or "2 x v5e:16x16".

    Raises:
      LaunchError: the chip is unknown, the number of dimensions is wrong, or hosts of four chips
        (2 x 2) do not fill the sizes. The message names what works.
    """
    found = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?([a-z]\w*):(\d+(?:x\d+)*)\s*", name)
    if not found:
        raise LaunchError(
            f"--topology={name!r} is not a topology: write chip:sizes, such as v5e:16x16, "
            "v5p:4x4x8 or 2 x v5e:16x16."
        )
    count, kind, sizes = found.groups()
    if kind not in CHIPS:
        near = get_close_matches(kind, CHIPS, n=1, cutoff=0.3)
        raise LaunchError(
            f"--topology={name!r}: there is no chip {kind!r}: choose from {', '.join(CHIPS)}"
            + (f"; did you mean {near[0]}?" if near else ".")
        )
    chip, shape = CHIPS[kind], tuple(map(int, sizes.split("x")))
    if len(shape) != chip.dimensions:
        example = "x".join(["4"] * chip.dimensions)
        raise LaunchError(
            f"--topology={name!r}: {kind} chips form a torus of {chip.dimensions} dimensions: "
            f"write {kind}:{example}, for instance."
        )
    if any(size % 2 for size in shape[:2]) or 0 in shape:
        even = "x".join(str(max(n + n % 2, 2)) for n in shape[:2])
        rest = "".join(f"x{max(n, 1)}" for n in shape[2:])
        raise LaunchError(
            f"--topology={name!r}: a host has 2 x 2 chips, so the first two sizes must be even: "
            f"{kind}:{even}{rest}."
        )
    slices = int(count or slices)
    if slices < 1:
        raise LaunchError(f"--slices must be 1 or more, not {slices}.")
    return Topology(chip, shape, slices)
