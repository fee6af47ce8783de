"""Reports as tables that a person reads, in a terminal and in Markdown alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
"""What JSON keeps: see `rows.measured`, `ahead.estimated` and `peer.compare`."""

NOTES = (
    "time: median (least to most) of the rounds, of one step or of one whole sampling; FLOPs: on "
    "all devices; MFU: least FLOPs / time / the device's rate of matrix products; * of memory: the "
    "compiler's plan, arguments, temporaries and outputs."
)


def render(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an aligned Markdown table; all columns but the first two stand to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return "| " + " | ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in pairs) + " |"

    rule = ["-" * (w + 2) if i < 2 else "-" * (w + 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(titles), f"|{'|'.join(rule)}|", *map(line, rows)])


def programs(reports: Sequence[Report]) -> str:
    """Returns the table of measured or estimated programs."""
    rows = [[cell(report) for cell in COLUMNS.values()] for report in reports]
    return f"{render(list(COLUMNS), rows)}\n{NOTES}"


COLUMNS: dict[str, Callable[[Report], str]] = {
    "config": lambda r: name(r),
    "what": lambda r: r["what"],
    "batch": lambda r: str(r["batch"]),
    "time": lambda r: spread(r["time"]),
    "images/s/device": lambda r: number(r["images_a_second"]),
    "FLOPs done": lambda r: number(r["done"]),
    "least": lambda r: number(r["least"]),
    "MFU": lambda r: share(r["mfu"]),
    "memory": lambda r: size(r["memory"]["bytes"]) + "*" * (r["memory"]["of"] == "compiler"),
    "compile": lambda r: f"{r['compile_seconds']:.1f} s",
}
"""Columns of the table of programs."""


def peers(reports: Sequence[Report]) -> str:
    """Returns the table of comparisons with the official code, and a line on how each was made."""
    titles = ("config", "what", "batch", "rounds", "jaxar", "official", "ratio")
    titles += ("as released", "its ratio", "peak memory", "in rounds")
    rows = []
    for r in reports:
        sides, released = (r["ours"], r["peer"]), r["released"] or {"time": None, "ratio": None}
        whole = "device" if sides[0]["memory"]["device"] else "whole"
        rows.append(
            [
                name(r) + ", official compiled" * r["compiled"],
                r["what"],
                str(r["batch"]),
                str(len(sides[0]["rounds"])),
                *(spread(side["time"]) for side in sides),
                interval(r["ratio"]),
                spread(released["time"]),
                interval(released["ratio"]),
                *(" / ".join(size(s["memory"][kind]) for s in sides) for kind in (whole, "since")),
            ]
        )
    lines = [f"{name(r)} {r['what']}: {made(r)}" for r in reports]
    return "\n".join([render(titles, rows), PEER_NOTES, *lines])


PEER_NOTES = (
    "official: without its logging; ratio: official / jaxar, the median of the rounds and the "
    "interval of that median."
)


def made(report: Report) -> str:
    """Returns how a comparison was made: settings, those tried, and how quiet the machine was."""
    words = [f"interval of {share(report['ratio']['coverage'])}"]
    for title, side in (("jaxar", report["ours"]), ("official", report["peer"])):
        tried = ", ".join(f"{key}: {length(time)}" for key, time in side["tried"].items())
        words.append(f"{title} with {side['setting']} (tried: {tried or 'nothing'})")
        words.append(f"{side['waiting']:.2f} s of processor time while it waited")
    return "; ".join([*words, f"other work took {share(report['others'])} of the machine"])


def interval(ratio: Mapping[str, float] | None) -> str:
    """Returns "1.25 (1.2 to 1.31)", or a dash where there is no such ratio."""
    if ratio is None:
        return "-"
    return f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})"


def ceilings(found: Report) -> str:
    """Returns one line on what the device can do."""
    rates = ", ".join(f"{dtype} {number(rate)}FLOP/s" for dtype, rate in found["flops"].items())
    return f"{found['kind']}: matrix products {rates}; copy {number(found['bandwidth'])}B/s"


def host(found: Mapping[str, float]) -> str:
    """Returns one line on what a dispatched step costs the host."""
    return (
        f"host: {found['thread']:.0f} us of the dispatching thread for a step of {found['arrays']} "
        f"arrays, of which the runtime takes {found['least']:.0f} for arrays alone; "
        f"{found['wall']:.0f} us passing"
    )


def waits(found: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the table of the loop's waits for data."""
    keys = ("median", "least", "most")
    rows = [[config, *(share(one[key]) for key in keys)] for config, one in found.items()]
    return render(("data wait", *keys), rows)


def growth(found: Sequence[Report]) -> str:
    """Returns the table of fitted exponents, 1 for linear growth."""
    rows = [
        [
            r["config"],
            f"{r['what']}: {r['over']}",
            ", ".join(map(str, r["x"])),
            ", ".join(map(spread, r["times"])),
            f"{r['exponent']:.2f}",
        ]
        for r in found
    ]
    return render(("config", "over", "sizes", "times", "exponent"), rows)


def name(report: Report) -> str:
    """Returns the config and the fields set in it, without their groups: "xar_b depth=(1,1)"."""
    fields = (field.partition("=") for field in report["fields"])
    shown = [f"{key.rpartition('.')[2]}={value}" for key, _, value in fields]
    return " ".join([report["config"], *shown])


def spread(time: Mapping[str, Any] | None) -> str:
    """Returns "12.3 ms (12.1 to 15)", or a dash where nothing was measured."""
    if time is None:
        return "-"
    median, least, most = (time[key] for key in ("median", "least", "most"))
    if least == most:
        return length(median)
    factor = 1.0 if median >= 1 else 1e3
    return f"{length(median)} ({least * factor:.3g} to {most * factor:.3g})"


def length(seconds: float) -> str:
    """Returns a time in seconds or milliseconds: "12.3 ms"."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def number(value: float | int | None) -> str:
    """Returns a number with three digits and its factor: "1.25 T"."""
    if value is None:
        return "-"
    for factor, unit in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g} "


def share(value: float | int | None) -> str:
    """Returns a share in percent."""
    return "-" if value is None else f"{value:.1%}"


def size(count: float | int | None) -> str:
    """Returns bytes in MiB or GiB."""
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
