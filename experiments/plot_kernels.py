"""Draw a grid of kernels, and the latent space of their VAE with the kernels that it decodes from a grid of codes.

python -m experiments.plot_kernels --conv data/fconv/conv7x7 --vae data/fconv/vae7x7 --out data/fconv/figures

The pictures are kernels7x7.png and latent7x7.png; those of a folder conv5x5-2 are kernels5x5-2.png and so on.
"""

import re
from pathlib import Path

from runs.errors import one_line_errors, user_error
from runs.options import Parser


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--conv", type=Path, required=True, help="folder with train.npy and test.npy")
    parser.add_argument("--vae", type=Path, help="folder of a VAE of these kernels with z_dim 2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them is answered at once.
    import utils
    from sweeps.vae_figures import kernel_figures, latent_figures, load_kernels_for, save_all

    named = re.fullmatch(r"conv(\d+x\d+-\d+)", args.conv.absolute().name)
    name = named[1] if named else ""
    with user_error("--conv, --vae:"):
        figures = kernel_figures(args.conv, name)
        if args.vae:
            vae, kernels = utils.load_vae(args.vae), load_kernels_for(args.vae, args.conv / "test.npy")
            with user_error(f"{args.vae}:"):
                figures |= latent_figures(vae, kernels, name)
    print(*save_all(figures, args.out), sep="\n")


if __name__ == "__main__":
    main()
