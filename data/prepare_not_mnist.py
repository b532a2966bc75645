"""Make notMNIST: the letters A-J as 28x28 images, bright on dark, in $DATA_ROOT/not-mnist/MNIST/raw.

    python data/prepare_not_mnist.py --archive notMNIST_small.tar.gz     its own archive, or the unpacked folder
    python data/prepare_not_mnist.py [--fonts [DIR ...]]                 its recipe, on the fonts of this machine or DIR
    python data/prepare_not_mnist.py --idx DIR [DIR ...]                 IDX files, e.g. of another notMNIST

Several sources together make one data set. data/not_mnist.py describes the recipe, and which images are for testing.
"""

import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python data/prepare_not_mnist.py`

from data import not_mnist
from runs.directory import data_root
from runs.errors import UserError, one_line_errors
from runs.options import Parser
from runs.types import number_type


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--archive", type=Path, nargs="+", default=[], help="notMNIST's tar files, or their unpacked folders")
    add("--fonts", type=Path, nargs="*", help="folders of fonts; without a folder, this machine's fonts")
    add("--idx", type=Path, nargs="+", default=[], help="folders with pairs of IDX files")
    add("--root", type=Path, default=data_root(), help="folder of data sets")
    add("--test_share", type=number_type(float, 0, 1), default=0.3, help="share of fonts or images for testing")
    args = parser.parse_args(argv)

    sources = [("--archive", [path], partial(not_mnist.from_archive, path)) for path in args.archive]
    sources += [("--idx", [path], partial(not_mnist.from_idx, path)) for path in args.idx]
    if args.fonts is not None or not sources:
        fonts = args.fonts or []
        sources.append(("--fonts", fonts, partial(not_mnist.from_fonts, fonts)))
    for option, paths, _ in sources:
        for path in paths:
            if not path.exists():
                raise UserError(f"{option}: {path} does not exist")
    glyphs, dropped = [], Counter()
    for option, _, read in sources:
        try:
            found, left_out = read()
        except (OSError, ValueError) as error:
            raise UserError(f"{option}: {error}") from None
        glyphs += found
        dropped.update(left_out)
    unique = not_mnist.drop_duplicates(glyphs)
    dropped["duplicates"] = len(glyphs) - len(unique)
    print("left out:", ", ".join(f"{count} {kind}" for kind, count in dropped.items()))
    try:
        parts = not_mnist.write(unique, args.test_share, args.root)
    except (OSError, ValueError) as error:
        raise UserError(f"{', '.join(dict.fromkeys(option for option, _, _ in sources))}: {error}") from None
    for part, members in parts.items():
        letters, origins = (Counter(getattr(glyph, name) for glyph in members) for name in ("label", "source"))
        shares = ", ".join(f"{count / len(members):.0%} from {source}" for source, count in origins.items())
        print(f"{part}: {len(members)} images ({shares}), per letter {[letters[i] for i in sorted(letters)]}")
    print(f"notMNIST is in {args.root / not_mnist.FOLDER}")


if __name__ == "__main__":
    main()
