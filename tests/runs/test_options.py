"""The options of the scripts: learning rates as functions of the epoch, and paths."""

import pytest

from runs.options import NOT_IDENTIFYING, NOT_STORED, learning_rate


@pytest.mark.parametrize("epoch, expected", [(1, 1.0), (4, 1.0), (5, 1.0), (6, 5 / 6), (10, 1 / 6)])
def test_learning_rate(script, epoch, expected):
    args = script("train-net.py").parse(["--epochs", "10", "--decrease_from", "4", "--lr", "1"])
    schedule = (epoch, args.epochs, args.lr, args.decrease_from)
    assert learning_rate(*schedule, args.milestones, args.gamma) == pytest.approx(expected)
    assert learning_rate(*schedule, [3, 8], args.gamma) == 0.5 ** ((epoch > 3) + (epoch > 8))


@pytest.mark.parametrize("schedule, fall", [("", 1), ("--lr_schedule constant", 1), ("--lr_schedule linear", 0.5)])
@pytest.mark.parametrize("steps, decay", [("", 1), ("--lr_decay_step 2 --decay 0.3", 0.3**2)])
def test_vae_learning_rate(script, schedule, fall, steps, decay):
    module = script("train-vae.py")
    argv = [
        "--kernel_dim",
        "5",
        "--data_dir",
        "x",
        "--num_epochs",
        "10",
        "--lr",
        "1",
        *schedule.split(),
        *steps.split(),
    ]
    args = module.parse(argv)
    assert module.learning_rate(args, 1) == 1 and module.learning_rate(args, 6) == pytest.approx(fall * decay)


@pytest.mark.parametrize("word", ["-1e1", "-10", "-10.", "-1E+1"])
def test_negative_numbers(script, word):
    assert script("train-bnn.py").parse(["--logvarinit", word, "--ens", "3"]).logvarinit == -10
    assert script("train-bnn.py").parse(["--logvarinit", "-.5"]).logvarinit == -0.5


YAML = """
prior_list: [sn, no]
aug: {switch}
tmp: {switch}
name: 2026-11-25
prior: no
epochs: 16
logvarinit: -1e1
pretrained: null
filters_list: ~
init_list: []
classifier_prior: none
"""


@pytest.mark.parametrize(
    "switch, expected", [(w, 1) for w in ("true", "yes", "on", "Yes", "1")] + [("off", 0), ("no", 0)]
)
def test_yaml_as_people_write_it(script, tmp_path, switch, expected):
    """YAML 1.1 reads `no` as False, dates as dates and `-1e1` as text; here an option gets the words as written."""
    file = tmp_path / "x.yaml"
    file.write_text(YAML.format(switch=switch))
    args = script("train-bnn.py").parse(["--config", str(file)])
    assert args.prior_list == ["sn", "no"] and args.prior == "no" and args.priors == ["sn", "no"]
    assert args.aug == expected and args.tmp == bool(expected) and args.name == "2026-11-25"
    assert (args.epochs, args.logvarinit, args.pretrained, args.filters_list) == (16, -10, "", [])
    assert script("train-net.py").parse(["--aug", switch, "--rfe", "on"]).rfe == 1


@pytest.mark.parametrize(
    "line, expected",
    [("aug: perhaps", "--aug: found 'perhaps', expected 0, 1 or affine"), ("tmp: 7", "tmp"), ("lr: {a: 1}", "lr")],
)
def test_yaml_that_no_option_takes(refusal, tmp_path, line, expected):
    (tmp_path / "x.yaml").write_text(f"{line}\n")
    assert expected in refusal("train-bnn.py", ["--config", str(tmp_path / "x.yaml")])


def test_paths_are_absolute(script, tmp_path, monkeypatch):
    """A relative path names the same file from every folder after parsing; an empty one stays empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    argv = ["--vae_list", "a", "../b/", "--resume", "x/../c", "--prior", "vae"]
    args = script("train-bnn.py").parse(argv)
    assert args.vae_list == [f"{tmp_path}/a", f"{tmp_path.parent}/b"] and args.resume == f"{tmp_path}/c"
    assert args.pretrained == "" and args.flow_list == [] and args.priors == ["vae", "vae"] and args.prior_list == []
    args = script("train-vae.py").parse(["--kernel_dim", "5", "--data_dir", ".", "--train", "/y/train.npy"])
    assert args.data_dir == str(tmp_path) and args.train == "/y/train.npy" and args.test == args.resume_vae == ""


def test_the_options_that_do_not_identify_a_run():
    """No result may depend on them: a sweep takes two trials that differ in them alone as the same trial."""
    assert set(NOT_STORED) < set(NOT_IDENTIFYING)
    assert set(NOT_IDENTIFYING) - set(NOT_STORED) == {"name", "tmp", "device", "tensorboard", "checkpoint_freq"}


@pytest.mark.parametrize("data, n_classes", [("cifar", 10), ("cifar100", 100), ("x.npz", None)])
def test_the_number_of_classes(script, data, n_classes):
    assert script("train-net.py").parse(["--data", data, "--model", "cifarnet"]).n_classes == n_classes
