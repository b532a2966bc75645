"""The page of `sweeps.collect`: learning curves, tables, and kernels before and after training, in one HTML file.

Names, arguments and columns come from files that others may have written. So every text passes through `html.escape`,
and a content security policy in the page's head forbids the browser to load anything, and to run any script but the one
that sorts tables, by its hash.
"""

import base64
import hashlib
import html
import io
import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from torch import Tensor

import utils
from runs.checkpoint import load_state
from runs.errors import UserError
from sweeps.plots import CYCLE, Curve, plot_before_after, plot_panels
from sweeps.tables import Record, reported, summary

NO_KERNELS = ("train-vae.py", "train-image-vae.py")  # scripts whose runs keep no initial kernels
NO_CURVE = ("t", "lr", "sec")  # columns of a log without a panel
PANELS = 3  # in a row
MAX_LEGEND = 12  # curves; a figure with more has no legend
MAX_NAME = 60  # characters of a name in a figure
MAX_LAYERS = 8  # of a network, whose kernels are shown
# The columns of logs that the first table and the figures have, by what they are. Of names that are equal up to a comma
# a figure has the first one that the logs have.
HEADLINES = {
    "accuracy": r"test_acc|draws/acc",
    "NLL, draws of the weights": "draws/nll",
    "NLL": "test_nll",
    "ECE": r"test/ece|draws/ece",
    "Brier": r"test/brier|draws/brier",
    "accuracy, ensemble": r"ens\[\d+\]_test_acc",
    "accuracy, mean network": "det_test_acc",
    "ELBO": "test_elbo",
}
# A click on a header sorts the rows of its table by that column, a second click in the other order.
SORT = """
for (const table of document.querySelectorAll("table")) {
  const headers = table.querySelectorAll("thead th");
  headers.forEach((header, column) => header.addEventListener("click", () => {
    const up = header.getAttribute("aria-sort") !== "ascending";
    headers.forEach(other => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.children[column].textContent;
    const order = (a, b) => {
      const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
      return isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x - y;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
  }));
}
"""
SCRIPT_HASH = base64.b64encode(hashlib.sha256(SORT.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'"
HEAD = (
    f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Runs</title>
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
"""
    + """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1300px; padding: 0 1em; color: #222 }
div { overflow-x: auto } svg, img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: 2px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
th { border-color: #888; cursor: pointer }
th[aria-sort=ascending]::after { content: " ▴" } th[aria-sort=descending]::after { content: " ▾" }
</style></head><body>
"""
)
FOOT = f"<script>{SORT}</script></body></html>\n"
KERNELS_NOTE = "Kernels (posterior means) of the first run of each group, each on its own scale."
NOTE = """The last values of the logs: mean ± standard deviation (n - 1) over the finished runs of a group, and their
number. A click on a header sorts a table. groups.csv and runs.csv have every column of the logs."""


def element(tag: str, words: str) -> str:
    """An HTML element with this text, escaped."""
    return f"<{tag}>{html.escape(words)}</{tag}>\n"


def html_table(table: pd.DataFrame) -> str:
    """A table in HTML: texts escaped, numbers with 5 digits, missing values empty."""
    shown = table.astype(object).where(table.notna(), "")
    with pd.option_context("display.max_colwidth", None):
        return f"<div>{shown.to_html(index=False, border=0, float_format='{:.5g}'.format)}</div>\n"


def figure_text(words: str) -> str:
    """A text for matplotlib: shortened to `MAX_NAME` characters, dollars escaped, which would start a formula."""
    short = words if len(words) <= MAX_NAME else f"{words[: MAX_NAME - 1]}…"
    return short.replace("$", r"\$")


def plot_curves(curves: dict[str, list[Record]]) -> plt.Figure:
    """A figure with a panel per column of the logs. A curve is the mean of a group's runs, with its 95% interval.

    `curves` has the runs of each group, by the group's name. A column of zeros, such as that of a term which is not in
    use, has no panel.
    """
    logs = {name: pd.DataFrame([row for record in members for row in record.rows]) for name, members in curves.items()}
    rows = pd.concat(logs.values())
    columns = [name for name in rows if name not in NO_CURVE and rows[name].any()]
    height = -(-len(columns) // PANELS) or 1
    figure, axes = plt.subplots(height, PANELS, figsize=(11, 2.7 * height), squeeze=False, layout="tight")
    for axis in axes.flat[len(columns) :]:
        axis.axis("off")
    for axis, column in zip(axes.flat, columns, strict=False):
        for i, (name, log) in enumerate(logs.items()):
            values = log.reindex(columns=["t", column]).dropna().groupby("t")[column].agg(list)
            t, points = values.index, pd.DataFrame(map(summary, values), columns=["mean", "low", "high"], dtype=float)
            style = {"color": CYCLE[i % len(CYCLE)], "linestyle": ("-", "--", ":")[i // len(CYCLE) % 3]}
            style |= {"linewidth": 1.2, "marker": "o" if len(t) < 20 else "", "markersize": 3}
            # A legend has no entry for a label that starts with an underscore.
            axis.plot(t, points["mean"], label=figure_text(f" {name}" if name.startswith("_") else name), **style)
            axis.fill_between(t, points["low"], points["high"], color=style["color"], alpha=0.2, linewidth=0)
        axis.set_title(figure_text(column), fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    if 1 < len(curves) <= MAX_LEGEND:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=9)
    return figure


def svg_element(figure: plt.Figure) -> str:
    """A figure as an SVG element of the page. Its identifiers are hashes of content, so figures can share them."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "page"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    return f"<div>{text.getvalue()[text.getvalue().index('<svg') :]}</div>\n"


def curves_element(curves: dict[str, list[Record]]) -> str:
    """The figure of `plot_curves`. Without a run, or if each log has one row, a sentence that says so instead."""
    if any(len(record.rows) > 1 for members in curves.values() for record in members):
        return svg_element(plot_curves(curves))
    why = "Each log has one row: --eval_freq sets how often a run is evaluated." if curves else "No finished run."
    return element("p", why)


def kernels_before_after(record: Record) -> dict[str, tuple[Tensor, Tensor]]:
    """Kernels (n, 1, k, k) of each conv layer before the training and after it, by the layer's name.

    Raises UserError where a file is missing or damaged, or the two files are of different networks.
    """
    before = load_state(record.root / "init_kernels.torch")
    after = utils.shown_kernels(load_state(record.root / "model.torch"))
    if {name: w.shape for name, w in before.items()} != {name: w.shape for name, w in after.items()}:
        raise UserError(f"{record.root}: init_kernels.torch and model.torch are of different networks")
    return {name: (before[name].float(), after[name].float()) for name in list(after)[:MAX_LAYERS]}


def kernels_section(named: dict[str, Record], note: str) -> str:
    """The section with the kernels of one run per name, below a note. A run that cannot be read is named on stderr."""
    head = element("h2", "Kernels before and after") + element("p", note)
    parts = []
    for name, record in named.items():
        with reported("not on the page"):
            layers = kernels_before_after(record)
            parts.append(element("h3", f"{name}, run {record.root.name}"))
            for layer, (before, after) in layers.items():
                figure, file = plot_before_after(before, after), io.BytesIO()
                figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
                plt.close(figure)
                data = base64.b64encode(file.getvalue()).decode()
                shown = f"{layer}: {len(after)} kernels before and after"
                image = f'<img alt="{html.escape(shown)}" src="data:image/png;base64,{data}">\n'
                parts += [element("p", shown), image]
    return "".join([head, *parts]) if parts else ""


def headlines(members: list[Record]) -> dict[str, list[float]]:
    """The last values of the runs' logs by name in `HEADLINES`, where all runs of the group have such a column."""
    found = {}
    for name, pattern in HEADLINES.items():
        values = [[v for column, v in record.rows[-1].items() if re.fullmatch(pattern, column)] for record in members]
        if all(values):
            found[name] = [own[0] for own in values]
    return found


def compact_table(groups: dict[tuple, list[Record]], by: Sequence[str]) -> pd.DataFrame:
    """A row for each group of one script's runs: the values of `by`, and each headline as mean ± std (n)."""
    rows = []
    for key, members in groups.items():
        row: dict[str, object] = dict(zip(by, key[1:], strict=True))
        for name, values in headlines(members).items():
            found = summary(values)
            row[name] = (
                f"{found['mean']:.4g}" + (f" ± {found['std']:.2g}" if found["n"] > 1 else "") + f" ({found['n']})"
            )
        rows.append(row)
    return pd.DataFrame(rows)


def plot_groups(groups: dict[tuple, list[Record]], by: Sequence[str]) -> plt.Figure | None:
    """A panel per kind of headline, at most `PANELS`, of one script's groups: means and standard deviations.

    The x-axis has the first argument of `by` whose values are numbers and differ, or else the first of all; the other
    arguments have a line for each of their values. None where `by` is empty or there is one group.
    """
    if not by or len(groups) < 2:
        return None
    columns = [[key[1 + i] for key in groups] for i in range(len(by))]
    numbers = [i for i, c in enumerate(columns) if len(set(c)) > 1 and all(isinstance(v, int | float) for v in c)]
    place = numbers[0] if numbers else 0
    lines: dict[tuple, list[tuple]] = {}
    for key in sorted(groups, key=lambda key: key[1 + place]) if numbers else groups:
        lines.setdefault((*key[1 : 1 + place], *key[2 + place :]), []).append(key)
    others = [name for i, name in enumerate(by) if i != place]
    panels: dict[str, list[Curve]] = {}
    drawn: dict[str, str] = {}  # the headline of each kind
    for line, keys in lines.items():
        label = figure_text(", ".join(f"{n} {value}" for n, value in zip(others, line, strict=True)) or "runs")
        found = {key: headlines(groups[key]) for key in keys}
        for name in HEADLINES:
            own = [(key[1 + place], summary(found[key][name])) for key in keys if name in found[key]]
            if own and drawn.setdefault(name.split(",")[0], name) == name and (name in panels or len(panels) < PANELS):
                x = [value if numbers else figure_text(str(value)) for value, _ in own]
                spread = [0.0 if point["n"] == 1 else point["std"] for _, point in own]
                panels.setdefault(name, []).append(Curve(label, x, [point["mean"] for _, point in own], spread))
    return plot_panels(panels, figure_text(by[place])) if panels else None


def page_html(
    records: list[Record], groups: dict[tuple, list[Record]], by: Sequence[str], tables: dict[str, pd.DataFrame]
) -> str:
    """The page as HTML: of all runs, of the finished ones in groups by the arguments `by`, and of the table of runs."""

    def group_name(key: tuple) -> str:
        return ", ".join(f"{argument} {value}" for argument, value in zip(by, key[1:], strict=True)) or key[0]

    parts = [HEAD, element("h1", f"{len(records)} runs"), element("p", NOTE)]
    for script in dict.fromkeys(key[0] for key in groups):
        own = {key: members for key, members in groups.items() if key[0] == script}
        figure, table = plot_groups(own, by), compact_table(own, by)
        parts.append(element("h2", f"{script}: {sum(map(len, own.values()))} finished runs"))
        parts += [svg_element(figure)] if figure else []
        parts += [html_table(table)] if table.size else []
    for script in dict.fromkeys(record.script for record in records):
        own = [record for record in records if record.script == script]
        parts += [element("h2", script), element("h3", "Learning curves")]
        if by:
            curves = {group_name(key): members for key, members in groups.items() if key[0] == script}
            parts.append(element("p", "The mean of each group's finished runs and its 95% interval, at each t."))
        else:
            curves = {record.root.name: [record] for record in own}
        parts.append(curves_element(curves))
        table = tables["runs"][[record.script == script for record in records]].dropna(axis=1, how="all")
        arguments = [name for name in table if name in own[0].arguments]
        constant = [name for name in arguments if len(own) > 1 and table[name].nunique(dropna=False) == 1]
        last = [f"last_{name}" for name in own[0].rows[-1] if any(re.fullmatch(p, name) for p in HEADLINES.values())]
        varied = [name for name in arguments if name not in constant]
        shown = [name for name in ("run", "state", *varied, *last) if name in table]
        parts += [element("h3", "Runs"), html_table(table[shown])]
        if constant:
            same = ", ".join(f"{name} {table[name].iloc[0]}" for name in constant if str(table[name].iloc[0]))
            parts.append(element("p", f"Equal in all runs: {same}."))
    names = {key: f"{key[0]}, {group_name(key)}" if by else key[0] for key in groups if key[0] not in NO_KERNELS}
    firsts = {name: groups[key][0] for key, name in names.items()}
    return "".join([*parts, kernels_section(firsts, KERNELS_NOTE), FOOT])
