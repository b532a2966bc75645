"""Rank VAEs as priors without a label of the target: what a classifier learns from the features that they decode.

    python -m sweeps.rank_vaes --vae_list data/fconv/vae7x7 data/fconv/vae5x5 --vae_list other/vae7x7 other/vae5x5

Each `--vae_list` is a candidate: a VAE per conv of the network. A candidate's kernels, with evenly spread codes (init
'vae-qmc'), fill the convs, which stay as they are. On few-shot tasks of the source domain a logistic regression learns
from the features. One row per candidate: its accuracy and NLL on the source domain's test images, means over tasks and
networks, with standard errors over networks, that is over draws of the kernels; the first candidate's accuracy minus
this one's, paired by network; and per conv the roughness of the kernels: squared differences of neighbouring weights
over squared weights, each summed over a kernel, mean over kernels. It is 0 for constant kernels, and for independent
weights 4 - 4 / k.

After `--` come options of train-net.py, in place of `-- --data not-mnist --num_examples 50 --hid_dim 32 128
--classifier_lamb 3`. The features have the same root mean square norm for all candidates, so that one prior of the
classifier suits all.
"""

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.configs import MODELS
from runs.errors import UserError, one_line_errors
from runs.options import Parser
from runs.types import SEED, number_type, path_type
from sweeps.grid import split_command
from sweeps.tables import mean_scores, standard_error, summary
from sweeps.trials import find_script, load_script

if TYPE_CHECKING:
    import torch

FEATURE_NORM = 10.0  # the root mean square norm of an image's features
SPLITS = tuple(range(100, 106))
SEEDS = tuple(range(10))
DEFAULT = ["--data", "not-mnist", "--num_examples", "50", "--hid_dim", "32", "128", "--classifier_lamb", "3"]


def roughness(kernels: "torch.Tensor") -> float:
    """Squared differences of neighbouring weights over squared weights of kernels (n, k, k), mean over kernels."""
    differences = sum(kernels.diff(dim=dim).square().sum((1, 2)) for dim in (1, 2))
    return (differences / kernels.square().sum((1, 2))).mean().item()


def load_candidates(
    vae_lists: Sequence[Sequence[str]], words: Sequence[str]
) -> tuple[Namespace, list[list[dict[str, Any]]]]:
    """The arguments of train-net.py, and the VAE of each conv of each candidate, as of `rank`."""
    parse_network = load_script(find_script("train-net.py"))["parse"]
    inits = ["vae-qmc"] * len(MODELS[parse_network(words).model].kernel_sizes)
    candidates = [parse_network([*words, "--init_list", *inits, "--vae_list", *vaes]) for vaes in vae_lists]
    for option in ("num_examples", "classifier_lamb"):
        if getattr(candidates[0], option) is None:
            raise UserError(f"--{option}: found none, expected a number")
    # After the arguments, so that a mistake in them is answered at once.
    import utils
    from runs.device import choose_device

    device = choose_device(candidates[0].device)
    return candidates[0], [utils.load_sources(candidate, device) for candidate in candidates]


def rank(
    vae_lists: Sequence[Sequence[str]],
    words: Sequence[str] = DEFAULT,
    splits: Sequence[int] = SPLITS,
    seeds: Sequence[int] = SEEDS,
) -> list[dict[str, Any]]:
    """The rows of the table: one for each candidate of `vae_lists`, the folders of a VAE for each conv of the network.

    `words` are the options of train-net.py, `splits` the `data_split_seed` of each task, `seeds` the seeds of the
    networks, at least two. Raises UserError.
    """
    rows = rank_sources(*load_candidates(vae_lists, words), splits, seeds)
    return [{"vae_list": " ".join(vaes)} | row for vaes, row in zip(vae_lists, rows, strict=True)]


def rank_sources(
    network: Namespace, loaded: Sequence[list[dict[str, Any]]], splits: Sequence[int], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The rows of `rank` without their names, of candidates whose `init_list` of `network` takes these sources."""
    import torch
    import torch.nn.functional as F
    from sklearn.linear_model import LogisticRegression
    from tqdm import tqdm

    import utils
    from models import metrics
    from models.build import build_network, conv_layers, conv_weight, init_network
    from runs.device import choose_device

    device = choose_device(network.device)
    whole = Namespace(**vars(network) | {"num_examples": None})
    train, test = utils.load_split(whole, device)
    utils.check_test_data(vars(whole), train, test)
    tasks = [utils.few_shot_split(train.labels, network.num_examples, split) for split in splits]
    images = train[torch.cat(tasks).to(device)]
    sizes = (network.model, network.net_cfg, network.hid_dim, network.model_size, whole.n_classes)

    def scores(sources: list[dict[str, Any]], seed: int) -> dict[str, float]:
        """Scores on the test images, means over the tasks, of the network with this seed."""
        torch.manual_seed(seed)
        net = build_network(*sizes).to(device).eval()
        init_network(net, network.init_list, sources)
        features = [utils.features_of(net, part, network.test_bs).images.cpu().double() for part in (images, test)]
        scale = FEATURE_NORM / features[0].square().sum(1).mean().sqrt()
        # A column of ones gives the biases the prior that the weights have; the intercept of scikit-learn has none.
        x_train, x_test = (F.pad(x * scale, (0, 1), value=1.0) for x in features)
        found = []
        for x, y in zip(*(part.split(network.num_examples) for part in (x_train, images.labels.cpu())), strict=True):
            classifier = LogisticRegression(C=network.classifier_lamb**2, fit_intercept=False, tol=1e-9, max_iter=1000)
            # The best weights lie in the span of the images' features: in its coordinates the problem is smaller.
            basis = torch.linalg.qr(x.T).Q
            classifier.fit((x @ basis).numpy(), y.numpy())
            log_p = torch.full((len(x_test), whole.n_classes), -math.inf, dtype=x_test.dtype)
            # The classifier has columns for the classes with images alone.
            log_p[:, classifier.classes_] = torch.from_numpy(classifier.predict_log_proba((x_test @ basis).numpy()))
            found.append(metrics.scores(log_p, test.labels.cpu()))
        means = mean_scores(found)
        kernels = [conv_weight(layer).detach().flatten(0, 1) for layer in conv_layers(net)]
        rough = {f"roughness_{i}": roughness(w) for i, w in enumerate(kernels, 1)}
        return {"acc": means["acc"], "nll": means["nll"], **rough}

    rows: list[dict[str, Any]] = []
    first: list[dict[str, float]] = []
    for sources in loaded:
        own = [scores(sources, seed) for seed in tqdm(seeds, desc="networks", leave=False, disable=None)]
        first = first or own
        columns = {name: [row[name] for row in own] for name in ("acc", "nll")}
        columns["acc_difference"] = [a["acc"] - b["acc"] for a, b in zip(first, own, strict=True)]
        row: dict[str, Any] = {}
        for name, values in columns.items():
            found = summary(values)
            row |= {name: found["mean"], f"{name}_se": standard_error(found)}
        row |= {name: mean for name, mean in mean_scores(own).items() if name not in columns}
        rows.append(row)
    return rows


@one_line_errors
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the table, and return its rows."""
    own, words = split_command(list(sys.argv[1:] if argv is None else argv))
    parser = Parser(__doc__)
    add = parser.add_argument
    help = "folder of the VAE of each conv; once per candidate"
    add("--vae_list", type=path_type, nargs="+", action="append", required=True, metavar="DIR", help=help)
    split = number_type(int, 0, 2**32 - 1)
    add("--splits", type=split, nargs="+", default=list(SPLITS), help="data_split_seed of the tasks")
    add("--seeds", type=SEED, nargs="+", default=list(SEEDS), help="seeds of the networks, at least two")
    args = parser.parse_args(own)
    if len(set(args.seeds)) < max(2, len(args.seeds)):
        raise UserError(f"--seeds: found {args.seeds}, expected at least two, each once")
    rows = rank(args.vae_list, words or DEFAULT, args.splits, args.seeds)
    import tabulate

    print(tabulate.tabulate(rows, "keys", floatfmt=".4f"))
    return rows


if __name__ == "__main__":
    main()
