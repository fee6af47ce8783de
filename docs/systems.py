"""Writes docs/systems.md, the table of all systems, from configs and result files.

    python docs/systems.py

A row is a config. What a run gave is read from docs/results/<config>.json, a copy of the run's
result.json; what was published, from the line "Published: ..." of the config's docstring.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import jax

from jaxar import config as configs
from jaxar import tree
from jaxar.assembly import build_system

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "systems.md", ROOT / "docs" / "results"

HEAD = """\
# Systems

Every system is a config over the same parts: *entities* X of a plan, a *tokenizer* that turns data
into the tokens they hold, a *backbone*, a *head* that is the law of an entity given its *context*,
and the walk by which the context draws them. `python docs/systems.py` writes this page from the
configs and from result files of runs.

{table}

- **Entity:** what one step predicts, and the grid of tokens it is a part of.
- **Context:** what an entity sees of the others. *noisy*: those before it, noised; *clean*: those
  before it (teacher forcing); *shifted*: what those before it say of it, such as the coarser scales
  enlarged; *masked*: any set of others, in random order.
- **Sampler:** how an entity is drawn.
- **Parameters:** of backbone and head, counted without making them.
- **Published:** on ImageNet, by the papers or their readmes; not measured here.
- **Measured here:** share of samples that a classifier of real digits recognises as their class,
  after minutes of training on two CPU cores ([evaluation](evaluation.md)).
"""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page())


def page() -> str:
    """Returns the text of the page."""
    rows = [row(path) for path in sorted(configs.files(ROOT / "configs"), key=order)]
    header = (
        "config",
        "entity",
        "tokenizer",
        "head",
        "context",
        "sampler",
        "parameters",
        "published",
        "measured here",
    )
    lines = [header, ("---",) * len(header), *(line for line in rows if line)]
    return HEAD.format(table="\n".join("| " + " | ".join(line) + " |" for line in lines))


def order(path: Path) -> tuple[bool, str, int]:
    """Returns what configs are sorted by: large ones first, then family, then size."""
    family, _, size = path.stem.partition("_")
    small = "digits" in size or "glyphs" in size
    sizes = ["b", "s", "l", "h", "d16", "d20", "d24", "d30", "d36"]
    return small, family, sizes.index(size) if size in sizes else len(sizes)


def row(path: Path) -> tuple[str, ...] | None:
    """Returns the cells of a config, or None where it trains no generative system."""
    config = configs.load(str(path))
    if config.system != "next_x":
        return None
    system = build_system(config)
    count = tree.count(jax.eval_shape(system.init, jax.random.key(0)))
    return (
        f"[`{path.stem}`](../{path.relative_to(ROOT).as_posix()})",
        entity(config, system.plan),
        tokenizer(config),
        config.head.name.replace("_", " "),
        config.context.name,
        sampler(config),
        f"{count:,}",
        published(path),
        measured(path.stem),
    )


def entity(config: Any, plan: Any) -> str:
    """Returns the X of a plan in words."""
    height, width = plan.grid
    if config.plan.name == "scale":
        return "scale " + ", ".join(str(h) if h == w else f"{h} x {w}" for h, w in plan.levels)
    if config.plan.name in ("cell", "subsample"):
        part = f"{config.plan.height} x {config.plan.width}"
        return f"{config.plan.name} {part} of {height} x {width}"
    return f"{config.plan.name} of {height} x {width}"


def tokenizer(config: Any) -> str:
    """Returns what the tokens are."""
    if config.tokenizer.name == "patch":
        return f"pixels, {config.tokenizer.height} x {config.tokenizer.width} patches"
    if config.autoencoder.name == "vq":
        return f"multi-scale VQ, {config.quantizer.vocabulary} codes"
    return f"KL, {config.autoencoder.channels} channels"


def sampler(config: Any) -> str:
    """Returns how an entity is drawn."""
    given = config.sample
    rule = "" if given.guidance == 1 else f", guidance {given.guidance:g}"
    if config.head.name == "categorical":
        return f"top-k {given.top_k}, top-p {given.top_p:g}{rule}"
    if config.head.name == "diffusion":
        return f"{given.iterations} iterations of {given.steps} steps{rule}"
    return f"{given.solver.replace('_', '-')} {given.steps}{rule}"


def published(path: Path) -> str:
    """Returns the figure after "Published:" in a config's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = re.search(r"Published:\s+(FID \d+(?:\.\d+)?)", text)
    return found.group(1) if found else ""


def measured(name: str) -> str:
    """Returns what a run of this config gave, from its result file."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return ""
    result = json.loads(path.read_text())
    return f"{result['recognised']:.1%} after {result['step']:,} steps"


if __name__ == "__main__":
    main()
