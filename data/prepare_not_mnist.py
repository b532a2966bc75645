"""Make notMNIST: the letters A-J as 28x28 images, bright on dark, in $DATA_ROOT/not-mnist/MNIST/raw.

    python data/prepare_not_mnist.py --archive notMNIST_small.tar.gz     its own archive, or the unpacked folder
    python data/prepare_not_mnist.py [--fonts DIR ...]                   its recipe, on the fonts of this machine or DIR

data/not_mnist.py describes the recipe.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python data/prepare_not_mnist.py`

from data import not_mnist
from runs.directory import data_root
from runs.errors import UserError, one_line_errors
from runs.options import Parser, number_type


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, help="notMNIST's tar file, or its unpacked folder")
    source.add_argument("--fonts", type=Path, nargs="+", default=[], help="folders of fonts; default: this machine's")
    parser.add_argument("--root", type=Path, default=data_root(), help="folder of data sets")
    parser.add_argument("--test_share", type=number_type(float, 0, 1), default=0.3, help="share of fonts for testing")
    args = parser.parse_args(argv)

    option, paths = ("--archive", [args.archive]) if args.archive else ("--fonts", args.fonts)
    for path in paths:
        if not path.exists():
            raise UserError(f"{option}: {path} does not exist")
    try:
        glyphs, dropped = not_mnist.from_archive(args.archive) if args.archive else not_mnist.from_fonts(args.fonts)
        unique = not_mnist.drop_duplicates(glyphs)
        dropped["duplicates"] = len(glyphs) - len(unique)
        print("left out:", ", ".join(f"{count} {kind}" for kind, count in dropped.items()))
        counts = not_mnist.write(unique, args.test_share, args.root)
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: {error}") from None
    for part, per_letter in counts.items():
        print(f"{part}: {sum(per_letter)} images, per letter {per_letter}")
    print(f"notMNIST is in {args.root / not_mnist.FOLDER}")


if __name__ == "__main__":
    main()
