"""Figures as PNG files, drawn by kaleido, which brings its own engine: no browser is needed."""

from collections.abc import Sequence
from importlib import resources

from jobs.report_figure import Figure

_WIDTH, _SCALE = 1000, 1.5


def images(figures: Sequence[Figure]) -> dict[str, bytes]:
    """File name → PNG, of every figure that draws something, on white."""
    from kaleido.scopes.plotly import PlotlyScope  # here: the engine is needed by this function alone

    library = resources.files("plotly").joinpath("package_data", "plotly.min.js")
    scope = PlotlyScope(plotlyjs=str(library))
    return {
        f"{figure.name}.png": scope.transform(
            {"data": list(figure.data), "layout": {**_base(figure), **figure.layout}},
            format="png", width=_WIDTH, height=figure.height + 40, scale=_SCALE,
        )
        for figure in figures
        if not figure.missing
    }  # fmt: skip


def _base(figure: Figure) -> dict[str, object]:
    return {
        "title": {"text": figure.title, "x": 0.01, "xanchor": "left"},
        "font": {"size": 14, "color": "#1c2733"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"t": 70},
    }
