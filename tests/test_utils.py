"""The few-shot split against scikit-learn's, augmentation, predictions in several threads, near-duplicate kernels."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

import utils
from models.bayes import set_mode
from models.fconv import FConv
from runs.errors import UserError


def test_the_split_is_scikit_learns():
    labels = torch.from_numpy(np.random.default_rng(0).choice(10, 6000, p=[0.05] * 5 + [0.15] * 5))
    for seed in range(5):
        ours = utils.few_shot_split(labels, 50, seed)
        expected = train_test_split(np.arange(6000), train_size=50, random_state=seed, stratify=labels.numpy())[0]
        assert ours.tolist() == expected.tolist()
        counts = np.bincount(labels[ours].numpy(), minlength=10)
        assert (np.abs(counts - 50 * np.bincount(labels.numpy()) / 6000) <= 1).all()


def test_predictions_do_not_depend_on_the_number_of_threads():
    """Batches in 1, 2 or 3 threads give the same logits; each batch has noise of its own."""
    net = FConv("bayes", (4, 6), log_variance=-3.0).eval()
    data = utils.DataSet(torch.randint(256, (730, 1, 28, 28), dtype=torch.uint8), torch.zeros(730, dtype=torch.int64))
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3, 3):
            torch.set_num_threads(n)
            torch.manual_seed(5)
            found.append(utils.predict(lambda x, generator: net.sample_logits(x, 3, generator), data, 500))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert [b.shape for b in found[0]] == [(3, 100, 10)] * 7 + [(3, 30, 10)] and not found[0][0].requires_grad
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)
    assert torch.equal(torch.cat(found[2], 1), torch.cat(found[3], 1))
    # The noise differs between batches of equal images, and between samples.
    same = utils.DataSet(data.images[:1].expand(200, -1, -1, -1), data.labels[:200])
    first, second = utils.predict(lambda x, generator: net.sample_logits(x, 3, generator), same, 100)
    assert not torch.isclose(first, second).all(2).any() and not torch.isclose(first[0], first[1]).all(1).any()
    set_mode(net, "det")
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(utils.predict(lambda x, _: net(x), data, 100)), net(data.batch(...)[0]))
    with pytest.raises(ZeroDivisionError):
        utils.predict(lambda x, _: 1 / 0, data, 100)


def test_near_duplicates_are_dropped():
    """The kernels that are kept are those of the rule, applied kernel by kernel in float64."""
    torch.manual_seed(0)
    kernels = torch.randn(60, 1, 3, 3)
    zeros = torch.zeros(9, 1, 3, 3)
    kernels = torch.cat([kernels, kernels[:20] * 1.03, zeros, kernels[5:9] * 1.2, kernels[:3] + 0.001])
    kept = []
    for kernel in kernels.double():
        if all((kernel - other).norm() > 0.05 * max(kernel.norm(), other.norm()) for other in kept):
            kept.append(kernel)
    found = utils.drop_near_duplicates(kernels, 0.05, block=7)
    assert len(found) == len(kept) == 65
    torch.testing.assert_close(found.double(), torch.stack(kept))


def test_a_split_that_leaves_a_class_out_is_refused():
    """With SVHN's class counts and 10 images, class 9 gets none; the smallest number that works is named, and works."""
    counts = [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659]
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    for seed in range(3):
        with pytest.raises(UserError, match=r"--num_examples: found 10, expected at least (\d+): .* class") as error:
            utils.few_shot_split(labels, 10, seed)
        enough = int(str(error.value).split("at least ")[1].split(":")[0])
        assert len(labels[utils.few_shot_split(labels, enough, seed)].unique()) == 10
        with pytest.raises(UserError):
            utils.few_shot_split(labels, enough - 1, seed)
