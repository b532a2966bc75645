"""Look inside the run of a Bayesian network: one page with what its posterior and its KL have become.

    python -m experiments.diagnose RUN_DIR [--out diagnose.html]

The page has the learning curves; the kernels before and after training; and per Bayesian layer the medians of the
posterior's deviation / |mean| and of deviation / deviation under the prior (near 1: the images have changed little),
and the KL with its two terms, the negative entropy of the posterior and the cross entropy of the prior.

The KL under the deep weight prior has no closed form: training uses an upper bound, KL_aux (models/priors.py). The page
compares it with a tighter estimate by importance sampling of `--samples` latent codes z per kernel, on the same draws
of the weights. A gap near 0 nats per kernel means that the bound is tight. The VAEs, flows and kernels at the paths of
the run must be those that it learnt with.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.errors import UserError, one_line_errors, user_error
from runs.files import atomic_write
from runs.options import Parser
from runs.types import SEED, WHOLE, path_type
from sweeps.inputs import check_inputs
from sweeps.trials import find_script, load_script

if TYPE_CHECKING:
    from models.bayes import BayesLayer
    from models.network import ConvNet

SCRIPT = "train-bnn.py"
REPEATS = 100  # draws of z per w in KL_aux


def load_with_priors(run: str) -> "ConvNet":
    """The network of a run of train-bnn.py with its priors and trained reverse models.

    Raises UserError, also where the VAEs, flows or kernels are no longer those of the run.
    """
    import utils
    from models.build import set_priors
    from runs.checkpoint import load_checked, load_state

    net, params = utils.load_network(run)
    if "prior" not in params:
        raise UserError(f"RUN_DIR {run}: found no Bayesian network, expected a run of {SCRIPT}")
    args = load_script(find_script(SCRIPT))["parse"](["--config", f"{run}/params.yaml"])
    with user_error(f"RUN_DIR {run}:"):
        set_priors(net, args.priors, utils.load_sources(args, "cpu"), vars(args))
    check_inputs([(Path(run), args)], images=False)
    load_checked(net, load_state(f"{run}/model.torch"), f"{run}/model.torch")
    return net


def bound_gap(layer: "BayesLayer", kernels: int, samples: int) -> dict[str, float]:
    """KL_aux and the importance-weighted KL of a layer under the deep weight prior, and their difference.

    In nats per kernel: means over `kernels` of its kernels, drawn at random, with one w each; the difference with its
    standard error over the kernels.
    """
    import torch

    from models.priors import gaussian_entropy

    prior, z_samples = layer.prior, layer.prior.z_samples
    mean, log_variance = (t.flatten(0, 1).unsqueeze(1) for t in (layer.mean.weight, layer.log_variance()))
    drawn = torch.randperm(len(mean))[:kernels]
    mean, log_variance = mean[drawn], log_variance[drawn]
    w = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    rows = []
    for one in w.split(1):
        prior.z_samples = 0
        aux = prior.cross_entropy(one.expand(REPEATS, -1, -1, -1)).item() / REPEATS
        prior.z_samples = samples
        rows.append((aux, prior.cross_entropy(one).item()))
    prior.z_samples = z_samples
    aux, weighted = torch.tensor(rows, dtype=torch.float64).T
    entropy, gap = gaussian_entropy(log_variance).item() / len(w), aux - weighted
    return {
        "KL_aux per kernel": aux.mean().item() - entropy,
        f"KL by {samples} codes": weighted.mean().item() - entropy,
        "gap": gap.mean().item(),
        "error of the gap": gap.std().item() / math.sqrt(len(gap)),
    }


def layer_rows(net: "ConvNet", samples: int) -> list[dict[str, Any]]:
    """A row per Bayesian layer: deviations, KL and its terms, in nats; of a sampled KL the means over `samples`."""
    from models.bayes import BayesLayer, relative_deviations
    from models.priors import NoPrior, gaussian_entropy

    deviations, rows = relative_deviations(net), []
    for name, layer in net.named_modules():
        if isinstance(layer, BayesLayer):
            kl = sum(layer.kl().item() for _ in range(samples)) / samples
            kl = math.nan if isinstance(layer.prior, NoPrior) else kl
            entropy = gaussian_entropy(layer.log_variance()).item()
            row = {"layer": name, "prior": type(layer.prior).__name__, "weights": layer.mean.weight.numel()}
            row["deviation / |mean|"] = deviations[f"{name}/dev_to_mean"].item()
            row["deviation / prior's"] = float(deviations.get(f"{name}/dev_to_prior", math.nan))
            row |= {"KL": kl, "KL per weight": kl / layer.mean.weight.numel()}
            rows.append({**row, "- entropy": -entropy, "cross entropy": kl + entropy})
    return rows


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=path_type, metavar="RUN_DIR", help=f"run directory of {SCRIPT}")
    parser.add_argument("--out", type=Path, default=Path("diagnose.html"), help="the page")
    parser.add_argument("--samples", type=WHOLE, default=1000, help="codes z per w in the importance-weighted KL")
    parser.add_argument("--kernels", type=WHOLE, default=200, help="kernels per layer in the comparison of the bounds")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the draws")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them is answered at once.
    import pandas as pd
    import torch

    from models.bayes import BayesLayer
    from models.priors import DeepWeightPrior
    from sweeps.page import FOOT, HEAD, curves_element, element, html_table, kernels_section
    from sweeps.tables import read_runs

    net = load_with_priors(args.run)
    torch.manual_seed(args.seed)
    with torch.no_grad():
        rows = layer_rows(net, 10)
        layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, BayesLayer)}
        gaps = [
            {"layer": name, **bound_gap(layer, args.kernels, args.samples)}
            for name, layer in layers.items()
            if isinstance(layer.prior, DeepWeightPrior)
        ]
    (record,) = read_runs([Path(args.run)])
    parts = [HEAD, element("h1", Path(args.run).name), element("h2", "Learning curves")]
    parts.append(curves_element({record.root.name: [record]}))
    note = "Medians over the weights of a layer; KL in nats, of a sampled one the mean of 10 estimates."
    parts += [element("h2", "Posterior and KL"), element("p", note), html_table(pd.DataFrame(rows))]
    if gaps:
        note = (
            f"Nats per kernel, means over at most {args.kernels} kernels. The smaller the gap, the tighter the bound."
        )
        parts += [element("h2", "The bound of the KL"), element("p", note), html_table(pd.DataFrame(gaps))]
    parts += [kernels_section({SCRIPT: record}, "Kernels (posterior means), each on its own scale."), FOOT]
    with atomic_write(args.out) as file:
        file.write("".join(parts).encode())
    print(f"page: {args.out}")


if __name__ == "__main__":
    main()
