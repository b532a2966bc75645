"""Train a VAE, or a flow, over convolution kernels: the deep weight prior of layers with that kernel size.

python train-vae.py --hidden_dim 32 --kernel_dim 7 --z_dim 2 --num_epochs 300 --data_dir data/fconv/conv7x7
"""

from pathlib import Path

from models.configs import VAES
from runs import options
from runs.errors import UserError, one_line_errors, user_error
from runs.types import POSITIVE, WHOLE, number_type, path_type, variance_type

SCRIPT = "train-vae.py"


def parse(argv: list[str] | None = None):
    parser = options.Parser(__doc__.split("\n")[0], SCRIPT)
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", type=path_type, metavar="DIR", default="", help="folder with train.npy and test.npy")
    add("--train", type=path_type, metavar="NPY", default="", help="training kernels, instead of data_dir's")
    add("--test", type=path_type, metavar="NPY", default="", help="test kernels, instead of data_dir's")
    help = "scale each kernel to this norm, so that posteriors do not collapse under the whole KL (RESULTS.md)"
    add("--norm", type=POSITIVE, metavar="X", help=help)
    add("--batch_size", type=WHOLE, default=128, help="kernels per training batch")
    add("--test_bs", type=WHOLE, default=512, help="kernels per test batch")
    add = parser.add_argument_group("model").add_argument
    add("--kind", choices=("vae", "flow"), default="vae", help="density model over kernels to train")
    add("--kernel_dim", type=int, default=16, help=f"kernel size k, one of {tuple(VAES)}")
    add("--z_dim", type=WHOLE, default=8, help="size of the VAE's latent code")
    add("--hidden_dim", type=WHOLE, default=16, help="width of the networks, in channels")
    add("--var", type=variance_type, default="train", help="decoder variance: 'train', or fixed at a positive number")
    add("--transforms", type=WHOLE, default=5, help="autoregressive transforms of the flow")
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--num_epochs", type=WHOLE, default=1000, help="passes over the training kernels")
    add("--lr", type=POSITIVE, default=1e-3, help="initial learning rate")
    add(
        "--lr_schedule",
        choices=("constant", "linear"),
        default="constant",
        help="'linear' lets the rate fall to 0; the published code very likely kept it constant",
    )
    add("--lr_decay_step", type=WHOLE, help="epochs between multiplications of the rate by decay")
    add("--decay", type=POSITIVE, default=0.5, help="factor of the rate every lr_decay_step epochs")
    add(
        "--kl_warmup",
        type=number_type(int, 0),
        default=0,
        help="epochs in which the weight of the VAE's KL in the loss rises from 0 to 1, against posterior collapse",
    )
    for option, file in (("resume_vae", "vae_params.torch"), ("resume_opt", "opt_params.torch")):
        add(f"--{option}", type=path_type, metavar="FILE", default="", help=f"state to start from, e.g. a run's {file}")
    options.add_compile_option(training)
    options.add_run_options(parser)
    args = parser.parse_args(argv)

    if args.kernel_dim not in VAES:
        raise UserError(f"--kernel_dim: found {args.kernel_dim}, expected one of {', '.join(map(str, VAES))}")
    flow = args.kind == "flow"
    for option in ("z_dim", "var", "kl_warmup") if flow else ("transforms",):
        if getattr(args, option) != parser.get_default(option):
            other = "vae" if flow else "flow"
            raise UserError(
                f"--{option}: found {getattr(args, option)} with --kind {args.kind}, expected --kind {other}"
            )
    for part in ("train", "test"):
        if not args.data_dir and not getattr(args, part):
            raise UserError(f"--data_dir: found neither it nor --{part}, expected a folder with {part}.npy")
    return args


def learning_rate(args, epoch: int) -> float:
    """Adam's rate in epoch 1..num_epochs."""
    steps = (epoch - 1) // args.lr_decay_step if args.lr_decay_step else 0
    fall = 1 - (epoch - 1) / args.num_epochs if args.lr_schedule == "linear" else 1
    return args.lr * fall * args.decay**steps


@one_line_errors
def main(argv: list[str] | None = None):
    args = parse(argv)
    # Imported after parsing, so that errors in arguments appear at once.
    import torch

    import utils
    from models.build import build_vae
    from models.flow import KernelFlow
    from runs.checkpoint import find_checkpoints, load_checked, load_file, load_optimizer, load_state
    from runs.device import autocast, choose_device, compiled, seed_all
    from runs.loop import Run

    seed_all(args.seed)
    device = choose_device(args.device)
    precision = autocast(args.precision, device)
    size = (args.kernel_dim, args.norm)
    with user_error("--train"):
        train = utils.load_kernels(args.train or Path(args.data_dir, "train.npy"), *size).to(device)
    with user_error("--test"):
        test = utils.load_kernels(args.test or Path(args.data_dir, "test.npy"), *size).to(device)
    if args.kind == "flow" and len(train) < 2:
        raise UserError("--train: found 1 kernel, expected at least 2, whose mean and deviation a flow needs")
    if args.kind == "flow":
        density = KernelFlow(args.kernel_dim, args.hidden_dim, args.transforms).to(device)
        density.standardize(train)
    else:
        density = build_vae(args.kernel_dim, args.z_dim, args.hidden_dim, args.var).to(device)
    elbo = compiled(density.elbo, device) if args.compile else density.elbo
    optimizer = torch.optim.Adam(density.parameters(), lr=args.lr)
    if args.resume_vae and not find_checkpoints(args.continue_run):
        with user_error("--resume_vae"):
            load_checked(density, load_state(args.resume_vae), args.resume_vae)
    if args.resume_opt and not find_checkpoints(args.continue_run):
        with user_error("--resume_opt"):
            load_optimizer(optimizer, load_file(args.resume_opt), args.resume_opt)
    totals = torch.zeros(3, device=device)  # ELBO, log-likelihood and KL of an epoch, summed on the device
    run = Run(SCRIPT, args, device, {"data_dir": [train, test], "train": [train], "test": [test]})
    run.track(**{f"{args.kind}_params": density}, opt_params=optimizer, totals=totals)

    @torch.no_grad()
    def evaluate() -> list[float]:
        """Mean ELBO, log-likelihood and KL on the test kernels, in nats per kernel."""
        with precision:
            terms = torch.stack([torch.stack(density.elbo(w)).sum(1) for w in test.split(args.test_bs)])
        return (terms.sum(0) / len(test)).tolist()

    for epoch in run.epochs(args.num_epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, epoch)
        kl_weight = min(1.0, epoch / (args.kl_warmup + 1))
        for index in run.batches(len(train), args.batch_size):
            with precision:
                batch = elbo(train[index])
            means = torch.stack(batch).mean(1)
            run.require_finite({"the log-likelihood": means[1], "the KL": means[2]})
            optimizer.zero_grad()
            (kl_weight * means[2] - means[1]).backward()
            optimizer.step()
            totals += means.detach() * len(index)

        if run.should_evaluate(epoch, args.num_epochs):
            columns = ("train_elbo", "train_ll", "train_kl", "test_elbo", "test_ll", "test_kl")
            run.log(epoch, **dict(zip(columns, [*(totals / len(train)).tolist(), *evaluate()], strict=True)))
            run.save_weights()
        totals.zero_()
    return run


if __name__ == "__main__":
    main()
