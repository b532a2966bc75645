"""The page of `sweeps.collect`: learning curves, tables, and kernels before and after training, in one HTML file.

Names, arguments and columns come from files that others may have written. So every text passes through `html.escape`,
and a content security policy in the page's head forbids the browser to run scripts or to load anything.
"""

import base64
import html
import io
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from torch import Tensor

import utils
from runs.checkpoint import load_state
from runs.errors import UserError
from sweeps.plots import plot_before_after
from sweeps.tables import Record, printable, summary

NO_CURVE = ("t", "lr", "sec")  # columns of a log without a panel
PANELS = 3  # in a row
MAX_LEGEND = 12  # curves; a figure with more has no legend
MAX_NAME = 60  # characters of a name in a figure
MAX_LAYERS = 8  # of a network, whose kernels are shown
HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Runs</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
div { overflow-x: auto } svg, img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: 2px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
th { border-color: #888 }
</style></head><body>
"""


def paragraph(words: str) -> str:
    """A text as an HTML paragraph, escaped."""
    return f"<p>{html.escape(words)}</p>\n"


def heading(level: int, words: str) -> str:
    """A text as an HTML heading, escaped."""
    return f"<h{level}>{html.escape(words)}</h{level}>\n"


def html_table(table: pd.DataFrame) -> str:
    """A table in HTML: texts escaped, numbers with 5 digits, missing values empty."""

    def entry(value: Any) -> str:
        return "" if pd.isna(value) else f"{value:.5g}" if isinstance(value, float) else html.escape(str(value))

    rows = [[entry(value) for value in row] for row in table.astype(object).itertuples(index=False, name=None)]
    lines = ["".join(f"<td>{value}</td>" for value in row) for row in rows]
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div><table>\n<tr>{head}</tr>\n{body}\n</table></div>\n"


def figure_text(words: str) -> str:
    """A text for matplotlib: shortened to `MAX_NAME` characters, dollars escaped, which would start a formula."""
    short = words if len(words) <= MAX_NAME else f"{words[: MAX_NAME - 1]}…"
    return short.replace("$", r"\$")


# --- learning curves ----------------------------------------------------------------------------------------------


def plot_curves(curves: dict[str, list[Record]]) -> plt.Figure:
    """A figure with a panel per column of the logs. A curve is the mean of a group's runs, with its 95% interval.

    `curves` has the runs of each group, by the group's name. A column of zeros, such as that of a term which is not in
    use, has no panel.
    """
    rows = [row for members in curves.values() for record in members for row in record.rows]
    columns = [
        name for name in dict.fromkeys(name for row in rows for name in row if row[name]) if name not in NO_CURVE
    ]
    height = -(-len(columns) // PANELS)
    figure, axes = plt.subplots(height, PANELS, figsize=(11, 2.7 * height), squeeze=False)
    for axis in axes.flat[len(columns) :]:
        axis.axis("off")
    for axis, column in zip(axes.flat, columns, strict=False):
        for i, (name, members) in enumerate(curves.items()):
            values: dict[float, list[float]] = {}
            for record in members:
                for row in record.rows:
                    if column in row:
                        values.setdefault(row["t"], []).append(row[column])
            points = {t: summary(values[t]) for t in sorted(values)}
            style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10 % 3]}
            # A legend has no entry for a label that starts with an underscore.
            label = figure_text(name if not name.startswith("_") else f" {name}")
            marker = "o" if len(points) < 20 else ""
            mean = [p["mean"] for p in points.values()]
            axis.plot(list(points), mean, label=label, marker=marker, markersize=3, linewidth=1.2, **style)
            low, high = ([np.nan if p[end] is None else p[end] for p in points.values()] for end in ("low", "high"))
            axis.fill_between(list(points), low, high, color=style["color"], alpha=0.2, linewidth=0)
        axis.set_title(figure_text(column), fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    if 1 < len(curves) <= MAX_LEGEND:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=9)
    figure.tight_layout()
    return figure


def svg_element(figure: plt.Figure) -> str:
    """A figure as an SVG element of the page. Its identifiers are hashes of content, so figures can share them."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "page"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    return f"<div>{text.getvalue()[text.getvalue().index('<svg') :]}</div>\n"


# --- kernels ------------------------------------------------------------------------------------------------------


def kernels_before_after(record: Record) -> dict[str, tuple[Tensor, Tensor]]:
    """Kernels (n, 1, k, k) of each conv layer before the training and after it, by the layer's name.

    Raises UserError where a file is missing or damaged, or the two files are of different networks.
    """
    before = load_state(record.root / "init_kernels.torch")
    after = utils.shown_kernels(load_state(record.root / "model.torch"))
    if {name: w.shape for name, w in before.items()} != {name: w.shape for name, w in after.items()}:
        raise UserError(f"{record.root}: init_kernels.torch and model.torch are of different networks")
    return {name: (before[name].float(), after[name].float()) for name in list(after)[:MAX_LAYERS]}


def kernels_section(named: dict[str, Record]) -> str:
    """The section with the kernels of one run per name. A run that cannot be read is named on stderr."""
    parts = []
    for name, record in named.items():
        if record.script == "train-vae.py":
            continue
        try:
            layers = kernels_before_after(record)
        except UserError as error:
            print(f"not on the page: {printable(error)}", file=sys.stderr)
            continue
        parts.append(heading(3, f"{name}, run {record.root.name}"))
        for layer, (before, after) in layers.items():
            figure, file = plot_before_after(before, after), io.BytesIO()
            figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
            plt.close(figure)
            data = base64.b64encode(file.getvalue()).decode()
            shown = f"{layer}: {len(after)} kernels before and after"
            parts.append(f'{paragraph(shown)}<img alt="{html.escape(shown)}" src="data:image/png;base64,{data}">\n')
    if not parts:
        return ""
    note = "Kernels (posterior means) of the first run of each group, before and after training, each on its own scale."
    return heading(2, "Kernels before and after") + paragraph(note) + "".join(parts)


# --- the page -----------------------------------------------------------------------------------------------------


def page_html(
    records: list[Record], groups: dict[tuple, list[Record]], by: Sequence[str], tables: dict[str, pd.DataFrame]
) -> str:
    """The page as HTML: of all runs, of the finished ones in groups by the arguments `by`, and of the two tables."""

    def group_name(key: tuple) -> str:
        return ", ".join(f"{argument} {value}" for argument, value in zip(by, key[1:], strict=True)) or key[0]

    parts = [HEAD, heading(1, f"{len(records)} runs")]
    parts.append(
        paragraph(
            "The tables have the last value of each column of a log and, of some columns, the best one. The best value "
            "of a test column was chosen on the test set: it must not be used to select runs or epochs."
        )
    )
    if len(tables["groups"]):
        parts += [
            heading(2, "Groups of finished runs"),
            paragraph("std: divisor n - 1; low, high: 95% interval."),
        ]
        shown = tables["groups"][tables["groups"]["metric"].str.match("last_|best_.*test")]
        parts.append(html_table(shown))
    for script in dict.fromkeys(record.script for record in records):
        own = [record for record in records if record.script == script]
        parts += [heading(2, script), heading(3, "Learning curves")]
        if by:
            curves = {group_name(key): members for key, members in groups.items() if key[0] == script}
            parts.append(paragraph("The mean of each group's finished runs and its 95% interval, at each t."))
        else:
            curves = {record.root.name: [record] for record in own}
        parts.append(svg_element(plot_curves(curves)) if curves else paragraph("No finished run."))
        table = tables["runs"][[record.script == script for record in records]].dropna(axis=1, how="all")
        constant = [
            n for n in table if len(table) > 1 and not n.startswith(("last_", "best_")) and n in own[0].arguments
        ]
        constant = [n for n in constant if table[n].nunique(dropna=False) == 1]
        parts += [heading(3, "Runs"), html_table(table.drop(columns=[*constant, "script"]))]
        if constant:
            same = ", ".join(f"{n} {table[n].iloc[0]}" for n in constant if str(table[n].iloc[0]))
            parts.append(paragraph(f"Equal in all runs: {same}."))
    firsts = {f"{key[0]}, {group_name(key)}" if by else key[0]: members[0] for key, members in groups.items()}
    parts.append(kernels_section(firsts))
    return "".join([*parts, "</body></html>\n"])
