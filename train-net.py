"""Train a deterministic network: a source of kernels, or a baseline.

python train-net.py --data not-mnist --bs 256 --hid_dim 256 512 --l2 0.001 --model fconv --net_cfg vanilla --seed 1
"""

import runs
from models.configs import MODELS

SCRIPT = "train-net.py"


def parse(argv: list[str] | None = None):
    switch = {"type": int, "choices": (0, 1), "default": 0}
    parser = runs.Parser(__doc__.split("\n")[0], SCRIPT)
    runs.add_network_options(parser, net_cfg="vanilla")
    regularization = parser.add_argument_group("regularization")
    regularization.add_argument(
        "--l2",
        type=runs.number(float, 0),
        default=0.0,
        help="weight of the sum of squares of all parameters of the conv part, added to the mean cross-entropy",
    )
    regularization.add_argument(
        "--dwp_reg",
        type=runs.number(float, 0),
        default=0.0,
        help="weight of the bound on -log p(weights), in nats, under the deep weight prior of every conv, added too",
    )
    regularization.add_argument(
        "--dwp_samples", type=runs.number(int, 1), default=1, help="z's per kernel and step in that bound"
    )
    regularization.add_argument(
        "--do",
        type=runs.number(float, 0, 1),
        nargs="*",
        default=[],
        help="dropout probabilities of fconv's 'vanilla-do', one for each conv layer",
    )
    what = parser.add_argument_group("what is trained, and how")
    runs.add_compile_option(what)
    what.add_argument("--rfe", **switch, help="1: the classifier and the batch norms alone, on frozen convs")
    what.add_argument("--fastconv", **switch, help="1: eval_freq and the log's t count steps, not epochs")
    runs.add_run_options(parser)
    args = parser.parse_args(argv)

    runs.check_net_cfg(args, bayesian=False)
    model = MODELS[args.model]
    convs = len(model.kernel_sizes)
    runs.check_network_options(args, ["vae"] * convs if args.dwp_reg else ())
    expected = convs if args.model == "fconv" and model.config(args.net_cfg).dropout else 0
    if len(args.do) != expected:
        raise runs.UserError(
            f"--do: found {len(args.do)} probabilities, expected {expected} for {args.model} {args.net_cfg}"
        )
    return args


@runs.command
def main(argv: list[str] | None = None) -> runs.Run:
    args = parse(argv)
    # After the arguments, so that a mistake in them answers at once.
    import torch
    import torch.nn.functional as F

    import utils
    from models.priors import DeepWeightPrior

    utils.seed_all(args.seed)
    device = utils.pick_device(args.device)
    precision = utils.autocast(args.precision, device)
    train, test = utils.load_network_data(args, device)
    priors = ["vae"] * len(MODELS[args.model].kernel_sizes) if args.dwp_reg else []
    sources = utils.load_sources(args, device, priors)
    net = utils.NETWORKS[args.model](args, do=args.do).to(device)
    utils.init_network(net, args, sources)
    convs = utils.conv_layers(net)
    if args.rfe:
        for conv in convs:
            conv.requires_grad_(False)
    forward = utils.compiled(net, device) if args.compile else net
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=args.lr)
    if args.resume and not args.continue_run:
        utils.resume(args.resume, net, optimizer)
    dwps = [DeepWeightPrior(source.vae) for source in sources] if args.dwp_reg else []
    # Loss, NLL, hits and number of the last images, summed on the device: reading a value makes a step wait for it.
    totals = torch.zeros(4, device=device)
    run = runs.Run(SCRIPT, args, device)
    run.track(model=net, opt=optimizer, totals=totals)
    if run.step == 0:
        runs.write_tensors(run.root / "init_kernels.torch", utils.shown_kernels(net.state_dict()))
    watch = runs.Stopwatch()

    def l2_norm() -> torch.Tensor:
        return sum(p.square().sum() for p in net.features.parameters())

    def dwp_bound() -> torch.Tensor:
        """The deep weight prior's bound on -log p(weights) in nats, averaged over `dwp_samples` draws of z."""
        kernels = [conv.weight.flatten(0, 1).unsqueeze(1) for conv in convs]
        draws = [d.cross_entropy(w) for d, w in zip(dwps, kernels, strict=False) for _ in range(args.dwp_samples)]
        return sum(draws, torch.zeros((), device=device)) / args.dwp_samples

    def evaluate() -> tuple[float, float]:
        """Mean NLL in nats per image and accuracy on the test set."""
        net.eval()
        logits = torch.cat(utils.predict(lambda x, _: net(x), test, args.test_bs, args.precision)).float()
        net.train()
        hits = logits.argmax(1) == test.labels
        return F.cross_entropy(logits, test.labels).item(), hits.float().mean().item()

    @torch.no_grad()
    def report(t: int) -> None:
        """Log the row `t`, of what was summed since the last, and write the model."""
        loss, train_nll, train_acc, _ = (totals / totals[3]).tolist()
        test_nll, test_acc = evaluate()
        run.log(
            t,
            loss=loss,
            train_nll=train_nll,
            test_nll=test_nll,
            train_acc=train_acc,
            test_acc=test_acc,
            lr=lr,
            sec=watch.lap(),
            l2_norm=l2_norm().item(),
            dwp_reg=dwp_bound().item(),
        )
        run.export()
        totals.zero_()

    steps = args.epochs * -(-len(train.labels) // args.bs)
    net.train()
    for epoch in run.epochs(args.epochs):
        lr = runs.learning_rate(args, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for index in run.batches(len(train.labels), args.bs):
            x, y = train.batch(index)
            with precision:
                logits = forward(utils.augment(x) if args.aug else x)
                nll = F.cross_entropy(logits, y)
                terms = {"l2": args.l2 * l2_norm(), "dwp_reg": args.dwp_reg * dwp_bound()}
            loss = nll + sum(terms.values())
            run.require_finite(**{"the data term is": nll}, **{f"the term of {k} is": v for k, v in terms.items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits = (logits.argmax(1) == y).sum()
            totals += torch.stack([loss.detach() * len(y), nll.detach() * len(y), hits, torch.full_like(hits, len(y))])
            if args.fastconv and run.due(run.step, steps):
                report(run.step)
        if not args.fastconv:
            if run.due(epoch, args.epochs):
                report(epoch)
            totals.zero_()
    return run


if __name__ == "__main__":
    main()
