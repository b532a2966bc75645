"""The options of the scripts: learning rates as functions of the epoch, and paths."""

import pytest

from runs.options import NOT_IDENTIFYING, NOT_STORED, learning_rate


@pytest.mark.parametrize("epoch, expected", [(1, 1.0), (4, 1.0), (5, 1.0), (6, 5 / 6), (10, 1 / 6)])
def test_learning_rate(script, epoch, expected):
    args = script("train-net.py").parse(["--epochs", "10", "--decrease_from", "4", "--lr", "1"])
    schedule = (epoch, args.epochs, args.lr, args.decrease_from)
    assert learning_rate(*schedule, args.milestones, args.gamma) == pytest.approx(expected)
    assert learning_rate(*schedule, [3, 8], args.gamma) == 0.5 ** ((epoch > 3) + (epoch > 8))


@pytest.mark.parametrize("epoch, step, expected", [(1, None, 1.0), (6, None, 0.5), (6, 2, 0.5 * 0.3**2)])
def test_vae_learning_rate(script, epoch, step, expected):
    module = script("train-vae.py")
    decay = ["--lr_decay_step", str(step), "--decay", "0.3"] if step else []
    args = module.parse(["--kernel_dim", "5", "--data_dir", "x", "--num_epochs", "10", "--lr", "1", *decay])
    assert module.learning_rate(args, epoch) == pytest.approx(expected)


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
