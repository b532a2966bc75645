"""The tables of RESULTS.md and of experiments/results/former.md follow from what is stored in experiments/results."""

import csv
import functools
import re
import shlex
import shutil
import tarfile

import pytest

from experiments import classification, convergence, feature_extraction, paper
from runs.directory import ROOT
from sweeps import cluster, inputs

RESULTS = ROOT / "experiments" / "results"
TEXT = (ROOT / "RESULTS.md").read_text()
REPORTS = {
    module: command[1]
    for module in (classification, convergence, feature_extraction)
    if (command := re.search(rf"^python -m {module.__name__} (.*)$", TEXT, re.MULTILINE))
}
SECTIONS = {
    (path.name, title): (path.parent, section)
    for path in (ROOT / "RESULTS.md", RESULTS / "former.md")
    for title, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", path.read_text(), re.MULTILINE | re.DOTALL)
}
TASKS = "classification-laptop/tasks/4500-7bdc7d4b1ea93b1f.npz"  # by the content of CIFAR-100's images in tasks
# Training images of which some are held out, by the option's place for their name, and by their content.
HELD_OUT = {"mnist": "held-out/50000-b9f0ca0e8a514ca8.npz", "{cifar10}": "held-out/41666-9d81f29f3461f3df.npz"}
SCORES = r"0\.\d{4} ± 0\.\d{4} \| \d\.\d{3} ± 0\.\d{3} \| 0\.\d{3} ± 0\.\d{3}"  # accuracy, NLL, ECE


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    with tarfile.open(RESULTS / "records.tar.xz") as archive:
        assert all(re.fullmatch(r"exman-[\w.-]+/[\w./-]+\.(yaml|csv)", name) for name in archive.getnames())
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("module", REPORTS)
def test_a_report_from_the_stored_records(module, records, tmp_path, monkeypatch):
    """Each command finds its trials finished, with today's VAEs and kernels, and writes what RESULTS.md has."""
    logs = tmp_path / "logs"
    logs.symlink_to(records)
    monkeypatch.setenv("DWP_PATH", str(logs))
    tasks = {"cifar100": str(logs / TASKS)}
    monkeypatch.setattr(classification, "with_tasks", lambda own: own._replace(data=own.data | tasks))  # without images
    monkeypatch.setattr(paper, "load_images", lambda *more: None)
    monkeypatch.setattr(paper, "held_out", lambda experiment, part: str(logs / HELD_OUT[part.images]))
    monkeypatch.setattr(inputs, "check_inputs", functools.partial(inputs.check_inputs, images=False))
    monkeypatch.setattr(cluster, "connected", None)  # no trial is run
    monkeypatch.chdir(tmp_path)
    for file in RESULTS.glob("*/settings.yaml"):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
    name, report = module.__name__.split(".")[-1], tmp_path / "RESULTS.md"
    report.write_text(paper.replaced(ROOT / "RESULTS.md", name, "old\n"))
    module.main(shlex.split(REPORTS[module]))
    assert report.read_text() == TEXT
    assert (tmp_path / "experiments" / "results" / name / f"{name}.png").stat().st_size


def test_three_reports_are_tested():
    assert len(REPORTS) == 3


def stored_scores(row):
    """The scores of a row of results.csv as a table has them, and the difference from the first method or ""."""
    numbers = {name: float(value) for name, value in row.items() if name not in ("method", "first")}
    scores = (
        f"{numbers[name]:.{digits}f} ± {numbers[f'{name}_se']:.{digits}f}"
        for name, digits in {"acc": 4, "nll": 3, "ece": 3}.items()
    )
    difference, interval = (100 * numbers[f"acc_difference{suffix}"] for suffix in ("", "_interval"))
    t = numbers["acc_difference"] / (numbers["acc_difference_se"] or 1)
    paired = f"{difference:+.1f} ± {interval:.1f} points | {t:.1f}" if row["method"] != row["first"] else ""
    return " | ".join(scores), paired


@pytest.mark.parametrize(
    "title", [title for title, (_, text) in SECTIONS.items() if re.search(SCORES, text)], ids=" ".join
)
def test_a_table_of_few_shot(title):
    """Each row has the scores of a method in a file that the section links, and its difference from the first."""
    folder, text = SECTIONS[title]
    paths = re.findall(r"\]\(([^)]*\.csv)\)", text)
    stored = [
        stored_scores(row)
        for path in paths
        for row in csv.DictReader((folder / path).read_text().splitlines())
        if "acc_difference_interval" in row
    ]
    rows = re.findall(rf"^\|.*\| ({SCORES}) \| *(.*?) *\|$", text, re.MULTILINE)
    assert rows
    for scores, difference in rows:
        found = {paired for own, paired in stored if own == scores}
        assert found
        paired = re.fullmatch(r"(?:ensembles: )?(\S+ ± \S+ points \| \S+)", difference)
        if paired and "" not in found:  # a method may also be the first of another command
            assert paired[1] in found
