"""The ensemble of several runs, any mix of train-net.py and train-bnn.py: the mean of their predicted probabilities.

    python -m experiments.ensemble logs/exman-train-net.py/runs/* logs/exman-train-bnn.py/runs/* --samples 30

Prints accuracy, NLL, calibration error and Brier score of each run and of the ensemble on the runs' test images.
"""

from models.configs import MODELS
from runs.errors import UserError, one_line_errors, user_error
from runs.options import Parser
from runs.types import WHOLE, number_type, path_type


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", type=path_type, nargs="+", metavar="RUN_DIR", help="run directories with one data set")
    help = "draws of the weights of a Bayesian network; 0: its mean network"
    parser.add_argument("--samples", type=number_type(int, 0), default=30, help=help)
    parser.add_argument("--test_bs", type=WHOLE, default=500, help="images per batch; at most 100 on a CPU")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them is answered at once.
    import tabulate
    import torch

    import utils
    from experiments.predictions import combined, predict_networks
    from models.metrics import scores

    loaded = [utils.load_network(run) for run in args.runs]
    names = {str(params.get("data")): run for run, (_, params) in zip(args.runs, loaded, strict=True)}
    if len(names) > 1:
        found = ", ".join(f"{name} of {run}" for name, run in names.items())
        raise UserError(f"RUN_DIR: found the data sets {found}, expected one data set")
    tests = []
    for run, (_, params) in zip(args.runs, loaded, strict=True):
        with user_error(f"{run}/params.yaml:"):
            tests.append(utils.check_test_data(params, *utils.load_run_data(params)))
    test = tests[0]
    for run, other in zip(args.runs, tests, strict=True):
        if not torch.equal(other.images, test.images):
            raise UserError(f"RUN_DIR {run}: found other test images than those of {args.runs[0]}, expected the same")
    for run, (_, params) in zip(args.runs, loaded, strict=True):
        shape, n_classes = tuple(test.images.shape[1:]), loaded[0][1]["n_classes"]
        if MODELS[params["model"]].image_shape != shape or params["n_classes"] != n_classes:
            found = f"{params['model']} with {params['n_classes']} classes"
            raise UserError(f"RUN_DIR {run}: found {found}, expected one for images of {shape} with {n_classes}")
    members = predict_networks([net for net, _ in loaded], test, args.samples, args.test_bs)
    rows = [[run, *scores(own.log_p, test.labels).values()] for run, own in zip(args.runs, members, strict=True)]
    rows.append([f"ensemble of {len(members)}", *scores(combined(members).log_p, test.labels).values()])
    print(tabulate.tabulate(rows, ["run", "accuracy", "NLL (nats)", "ECE", "Brier"], floatfmt=".4f"))


if __name__ == "__main__":
    main()
