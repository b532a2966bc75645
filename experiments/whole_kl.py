"""What the KL alone makes of posteriors under a deep weight prior: how far their kernels collapse into one.

    python -m experiments.whole_kl --vae_list data/fconv/vae7x7 data/fconv/vae5x5 --vae_list other/vae7x7 other/vae5x5

With few images and the whole KL, `--kl_weight 1`, the KL outweighs the likelihood. So the posterior of a Bayesian conv
is shaped by the KL almost alone. This command starts independent posteriors at kernels that a VAE decodes, with the
log variance -10, and minimizes the bound KL_aux of each by Adam, without any image. Columns per conv: the KL in nats
per kernel at the end; the median norm of the means before and after; the median of deviation over absolute mean, over
all weights; and the share of the means in the variance of a drawn kernel. The share is 0 where all posteriors have
become one, and 1 where the means differ and the deviations are 0.

`acc_before` and `acc` are accuracies of frozen features on letters, of kernels before, and of kernels drawn from the
posteriors after, by `sweeps.rank_vaes`, whose options of the network come after `--`. The letters are notMNIST's, in
$DATA_ROOT; `-- --data mnist ...` takes other images.
"""

import sys
from typing import TYPE_CHECKING

from runs.errors import one_line_errors
from runs.options import Parser
from runs.types import POSITIVE, SEED, WHOLE, number_type, path_type
from sweeps.grid import split_command
from sweeps.rank_vaes import DEFAULT, SPLITS, load_candidates, rank_sources

if TYPE_CHECKING:
    from torch import Tensor

    from models.priors import SampledPrior
    from models.vae import KernelVAE

LOG_VARIANCE = -10.0  # of all posteriors at the start, the default of train-bnn.py


def least_kl(prior: "SampledPrior", kernels: "Tensor", steps: int, rate: float) -> tuple["Tensor", "Tensor", float]:
    """Means and deviations (n, 1, k, k) of posteriors of the least KL, and their KL in nats per kernel.

    They start at `kernels`. Adam takes `steps` steps, whose rate falls linearly from `rate` to 0.
    """
    import torch

    mean = kernels.clone().requires_grad_()
    log_variance = torch.full_like(kernels, LOG_VARIANCE).requires_grad_()
    optimizer = torch.optim.Adam([mean, log_variance], rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        loss = prior.kl(mean, log_variance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return mean.detach(), (log_variance.detach() / 2).exp(), loss.item() / len(kernels)


@one_line_errors
def main(argv: list[str] | None = None) -> list[dict]:
    """Print the table, and return its rows."""
    own, words = split_command(list(sys.argv[1:] if argv is None else argv))
    parser = Parser(__doc__)
    add = parser.add_argument
    help = "folder of the VAE of each conv; once per candidate"
    add("--vae_list", type=path_type, nargs="+", action="append", required=True, metavar="DIR", help=help)
    add("--kernels", type=WHOLE, default=512, help="posteriors of each VAE")
    add("--steps", type=WHOLE, default=2500, help="steps of Adam")
    help = "Adam's rate at the start: steps * rate is the sum in 10,000 epochs at the rate 0.001, as published"
    add("--rate", type=POSITIVE, default=0.004, help=help)
    help = "networks of frozen features, whose accuracies are averaged"
    add("--networks", type=number_type(int, 2), default=4, help=help)
    add("--seed", type=SEED, default=0, help="seed of the posteriors")
    args = parser.parse_args(own)
    # After the arguments, so that a mistake in them is answered at once.
    import tabulate
    import torch
    from tqdm import tqdm

    from models.priors import DeepWeightPrior

    network, loaded = load_candidates(args.vae_list, words or DEFAULT)
    network.init_list = ["filters" for _ in network.init_list]

    def accuracies(kernels: list[list["Tensor"]]) -> list[dict]:
        """The rows of `sweeps.rank_vaes`, for the kernels of each candidate and conv."""
        sources = [[{"filters": own} for own in convs] for convs in kernels]
        return rank_sources(network, sources, SPLITS, range(args.networks))

    def decoded(vae: "KernelVAE") -> "Tensor":
        """The kernels that posteriors start at, as the first draws of the seed."""
        torch.manual_seed(args.seed)
        return vae.decode(torch.randn(args.kernels, vae.z_dim, 1, 1))[0].detach()

    vaes = [[source["vae"].cpu() for source in sources] for sources in loaded]
    # First, so that a mistake in the options of the network is answered at once.
    before = accuracies([[decoded(vae) for vae in own] for own in vaes])
    rows, ends = [], []
    for folders, own in zip(args.vae_list, tqdm(vaes, "candidates", leave=False, disable=None), strict=True):
        row: dict = {"vae_list": " ".join(folders)}
        ends.append([])
        for conv, vae in enumerate(own, 1):
            kernels = decoded(vae)
            mean, deviation, kl = least_kl(DeepWeightPrior(vae), kernels, args.steps, args.rate)
            ends[-1].append(mean + deviation * torch.randn_like(mean))
            norms = [w.flatten(1).norm(dim=1).median().item() for w in (kernels, mean)]
            spread = mean.var(0).mean()
            row |= {
                f"kl_{conv}": kl,
                f"norm_{conv}": f"{norms[0]:.3f}, {norms[1]:.3f}",
                f"deviation_{conv}": (deviation / mean.abs()).median().item(),
                f"share_{conv}": (spread / (spread + deviation.square().mean())).item(),
            }
        rows.append(row)
    for row, first, last in zip(rows, before, accuracies(ends), strict=True):
        row |= {"acc_before": first["acc"], "acc": last["acc"], "acc_se": last["acc_se"]}
    print(tabulate.tabulate(rows, "keys", floatfmt=".3f"))
    return rows


if __name__ == "__main__":
    main()
