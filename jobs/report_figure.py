"""One figure of the report: what it draws (as Plotly reads it), what it says, and the table behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Okabe & Ito 2008: told apart with any colour vision, on light and dark ground.
BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8A8F98"
PALETTE = (BLUE, ORANGE, GREEN, RED, PINK, SKY, "#B8A800", GREY)
DASHES = ("solid", "dash", "dot", "dashdot")
# Light to dark of one hue, so that more is darker also in grey print; reads on both grounds.
SCALE = [[0, "#e8f1f8"], [0.5, "#56a0cf"], [1, "#08306b"]]


@dataclass(frozen=True)
class Figure:
    """`missing`: why there is nothing to draw, in a sentence; then data is empty."""

    name: str
    section: str
    title: str
    says: str
    data: Sequence[Mapping[str, Any]] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    missing: str = ""
    height: int = 380


def short(name: str, most: int = 24) -> str:
    """A name that fits beside a bar."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def rgba(colour: str, opacity: float) -> str:
    """A colour of the palette, see-through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def step_name(step: int) -> str:
    """What a step of an interest is called."""
    return {-1: "latest events", 0: "next event"}.get(step, f"in {step} days" if step > 1 else "in 1 day")


def percent(share: float, digits: int = 1) -> str:
    """A share 0..1 for people."""
    return f"{share * 100:.{digits}f} %"
