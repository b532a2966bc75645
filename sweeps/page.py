"""The page of `experiments.collect`: learning curves, tables, and kernels before and after, in one HTML file.

Names, arguments and columns come from files of others: whatever is a text goes through `html.escape`, and a policy in
the page's head keeps a browser from running or loading anything.
"""

import base64
import html
import io
import sys
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd

import utils
from experiments.collect import Record, summary
from experiments.plots import plot_before_after
from runs import UserError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from torch import Tensor

NO_CURVE = ("t", "lr", "sec")  # columns of a log
PANELS = 3  # in a row
LEGEND = 12  # entries; with more curves there is none
NAME = 60  # characters of a name in a picture
LAYERS = 8  # of a network, whose kernels are shown
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
    return f"<p>{html.escape(words)}</p>\n"


def heading(level: int, words: str) -> str:
    return f"<h{level}>{html.escape(words)}</h{level}>\n"


def html_table(table: pd.DataFrame) -> str:
    """A table whose texts are escaped, numbers with 5 digits, missing values empty."""

    def cell(value: Any) -> str:
        return "" if pd.isna(value) else f"{value:.5g}" if isinstance(value, float) else html.escape(str(value))

    rows = [[cell(value) for value in row] for row in table.astype(object).itertuples(index=False, name=None)]
    lines = ["".join(f"<td>{value}</td>" for value in row) for row in rows]
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div><table>\n<tr>{head}</tr>\n{body}\n</table></div>\n"


def picture_text(words: str) -> str:
    """A text that matplotlib draws as it is, without taking dollars for formulas."""
    short = words if len(words) <= NAME else f"{words[: NAME - 1]}…"
    return short.replace("$", r"\$")


# --- learning curves ----------------------------------------------------------------------------------------------


def plot_curves(curves: dict[str, list[Record]]) -> plt.Figure:
    """A panel per column of the log, and in it a curve per name against t: the runs' mean, and its 95% interval.

    A column of zeros, as that of a term which is not in use, has no panel.
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
            at: dict[float, list[float]] = {}
            for record in members:
                for row in record.rows:
                    if column in row:
                        at.setdefault(row["t"], []).append(row[column])
            points = {t: summary(at[t]) for t in sorted(at)}
            style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10 % 3]}
            # A label that starts with an underscore would have no entry.
            label = picture_text(name if not name.startswith("_") else f" {name}")
            marker = "o" if len(points) < 20 else ""
            mean = [p["mean"] for p in points.values()]
            axis.plot(list(points), mean, label=label, marker=marker, markersize=3, linewidth=1.2, **style)
            low, high = ([np.nan if p[end] is None else p[end] for p in points.values()] for end in ("low", "high"))
            axis.fill_between(list(points), low, high, color=style["color"], alpha=0.2, linewidth=0)
        axis.set_title(picture_text(column), fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    if 1 < len(curves) <= LEGEND:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=9)
    figure.tight_layout()
    return figure


def svg(figure: plt.Figure) -> str:
    """A figure as an element of the page. Its identifiers are hashes of content, so figures can share them."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "page"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    return f"<div>{text.getvalue()[text.getvalue().index('<svg') :]}</div>\n"


# --- kernels ------------------------------------------------------------------------------------------------------


def kernels(record: Record) -> "dict[str, tuple[Tensor, Tensor]]":
    """Kernels (n, 1, k, k) of each conv layer as the run started and as they are. Raises UserError."""
    before = utils.load_state(record.root / "init_kernels.torch", "init_kernels.torch")
    after = utils.shown_kernels(utils.load_state(record.root / "model.torch", "model.torch"))
    if {name: w.shape for name, w in before.items()} != {name: w.shape for name, w in after.items()}:
        raise UserError(f"{record.root}: init_kernels.torch and model.torch are of different networks")
    return {name: (before[name].float(), after[name].float()) for name in list(after)[:LAYERS]}


def kernels_section(named: dict[str, Record]) -> str:
    """Pictures of one run per name; one that cannot be read is named on stderr."""
    parts = []
    for name, record in named.items():
        if record.script == "train-vae.py":
            continue
        try:
            layers = kernels(record)
        except UserError as error:
            print(f"not on the page: {' '.join(str(error).split())}", file=sys.stderr)
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
    note = (
        "Of the first run of each group: the untrained network's kernels (posterior means), then the same ones after."
    )
    return heading(2, "Kernels before and after") + paragraph(f"{note} Each on its own scale.") + "".join(parts)


# --- the page -----------------------------------------------------------------------------------------------------


def page(
    records: list[Record], groups: dict[tuple, list[Record]], by: list[str], tables: dict[str, pd.DataFrame]
) -> str:
    """The whole page, as HTML."""

    def name_of(key: tuple) -> str:
        return ", ".join(f"{argument} {value}" for argument, value in zip(by, key[1:], strict=True)) or key[0]

    parts = [HEAD, heading(1, f"{len(records)} runs")]
    parts.append(
        paragraph(
            "Of each column of a log the last and, for some, the best value. The best of a test column was chosen on "
            "the test set: it must not select between runs or epochs."
        )
    )
    if len(tables["groups"]):
        parts += [heading(2, "Groups of finished runs"), paragraph("std: n - 1; low, high: 95% interval of the mean.")]
        shown = tables["groups"][tables["groups"]["metric"].str.match("last_|best_.*test")]
        parts.append(html_table(shown))
    for script in dict.fromkeys(record.script for record in records):
        mine = [record for record in records if record.script == script]
        parts += [heading(2, script), heading(3, "Learning curves")]
        if by:
            curves = {name_of(key): members for key, members in groups.items() if key[0] == script}
            parts.append(
                paragraph("Mean of each group's finished runs and its 95% interval, over runs that have the t.")
            )
        else:
            curves = {record.root.name: [record] for record in mine}
        parts.append(svg(plot_curves(curves)) if curves else paragraph("No finished run."))
        table = tables["runs"][[record.script == script for record in records]].dropna(axis=1, how="all")
        constant = [
            n for n in table if len(table) > 1 and not n.startswith(("last_", "best_")) and n in mine[0].arguments
        ]
        constant = [n for n in constant if table[n].nunique(dropna=False) == 1]
        parts += [heading(3, "Runs"), html_table(table.drop(columns=[*constant, "script"]))]
        if constant:
            same = ", ".join(f"{n} {table[n].iloc[0]}" for n in constant if str(table[n].iloc[0]))
            parts.append(paragraph(f"The same in all of them: {same}."))
    firsts = {f"{key[0]}, {name_of(key)}" if by else key[0]: members[0] for key, members in groups.items()}
    parts.append(kernels_section(firsts))
    return "".join([*parts, "</body></html>\n"])
