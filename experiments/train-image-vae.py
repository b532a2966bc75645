"""Train a VAE over images, whose four convs start from an initialization: a part of `experiments.convergence`.

python experiments/train-image-vae.py --init_list vae vae vae vae --vae_list data/fconv/vae{7x7,5x5,5x5,7x7}
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python experiments/train-image-vae.py`

from models.configs import INITS
from runs import options
from runs.errors import UserError, one_line_errors
from runs.types import POSITIVE, WHOLE, data_type

SCRIPT = "experiments/train-image-vae.py"
CONVS = 4
SHAPE = (1, 28, 28)  # of images


def parse(argv: list[str] | None = None):
    parser = options.Parser(__doc__.split("\n")[0], SCRIPT)
    add = parser.add_argument_group("data").add_argument
    help = "data set of 28x28 grey images, read from $DATA_ROOT, or the path of an npz file or a folder"
    add("--data", type=data_type, metavar="NAME", default="mnist", help=help)
    add("--bs", type=WHOLE, default=240, help="images per training batch")
    add("--test_bs", type=WHOLE, default=500, help="images per test batch")
    add = parser.add_argument_group("model").add_argument
    add("--hid_dim", type=WHOLE, nargs="+", default=[64, 128], help="channels of the encoder's two convs")
    add("--z_dim", type=WHOLE, default=40, help="size of the latent code")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=WHOLE, default=4, help="passes over the training images")
    add("--lr", type=POSITIVE, default=1e-3, help="Adam's rate")
    options.add_init_options(parser, [name for name in INITS if name != "pretrained"])
    help = "scale the kernels of each conv to the root mean square of Xavier's; by default they stay as they are"
    parser.add_argument("--init_scale", choices=("xavier",), help=help)
    options.add_run_options(parser, "steps")
    parser.set_defaults(eval_freq=50)
    args = parser.parse_args(argv)

    if len(args.hid_dim) != 2:
        raise UserError(f"--hid_dim: found {len(args.hid_dim)} numbers, expected 2")
    options.check_init_options(args, CONVS)
    args.priors = []
    return args


@one_line_errors
def main(argv: list[str] | None = None):
    args = parse(argv)
    # Imported after parsing, so that errors in arguments appear at once.
    import torch

    import utils
    from models.build import init_network, scale_as_xavier
    from models.image_vae import KERNEL_SIZES, ImageVAE
    from runs.device import autocast, choose_device, seed_all
    from runs.loop import Run, Stopwatch, split_batches

    seed_all(args.seed)
    device = choose_device(args.device)
    precision = autocast(args.precision, device)
    train, test = (utils.DataSet(*(t.to(device) for t in part)) for part in utils.load_data(args.data, SHAPE))
    for part, images in (("train", train.images), ("test", test.images)):
        if not len(images) or images.shape[1:] != SHAPE:
            raise UserError(f"--data {args.data}: found {part} images {tuple(images.shape)}, expected (n, *{SHAPE})")
    sources = utils.load_sources(args, device, KERNEL_SIZES)
    vae = ImageVAE(args.hid_dim, args.z_dim).to(device)
    init_network(vae, args.init_list, sources, vae.convs())
    if args.init_scale:
        scale_as_xavier(vae.convs())
    optimizer = torch.optim.Adam(vae.parameters(), lr=args.lr)
    totals = torch.zeros(4, device=device)  # ELBO, log-likelihood, KL and images since the last row
    run = Run(SCRIPT, args, device, utils.run_inputs(train, test, sources))
    run.track(model=vae, opt=optimizer, totals=totals)
    watch = Stopwatch()

    @torch.no_grad()
    def evaluate() -> list[float]:
        """Mean ELBO, log-likelihood and KL on the test images, in nats per image."""
        batches = torch.arange(len(test.labels), device=device).split(args.test_bs)
        with precision:
            terms = [torch.stack(vae.elbo(test.batch(index)[0])).double().sum(1) for index in batches]
        return (torch.stack(terms).sum(0) / len(test.labels)).tolist()

    steps = args.epochs * len(split_batches(torch.arange(len(train.labels)), args.bs))
    for _ in run.epochs(args.epochs):
        for index in run.batches(len(train.labels), args.bs):
            with precision:
                terms = torch.stack(vae.elbo(train.batch(index)[0]))
            loss = -terms[0].mean()
            run.require_finite({"the ELBO": loss})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            totals += torch.cat([terms.detach().sum(1), totals.new_tensor([len(index)])])
            if run.should_evaluate(run.step, steps):
                elbo, ll, kl, _ = (totals / totals[3]).tolist()
                row = dict(zip(("test_elbo", "test_ll", "test_kl"), evaluate(), strict=True))
                run.log(run.step, train_elbo=elbo, train_ll=ll, train_kl=kl, **row, sec=watch.lap())
                run.save_weights()
                totals.zero_()
    return run


if __name__ == "__main__":
    main()
