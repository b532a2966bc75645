"""Write MNIST as IDX files to $DATA_ROOT/MNIST/raw, from the first source that answers (see data/mnist.py).

python data/prepare_mnist.py [--root DATA_ROOT]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python data/prepare_mnist.py`

from data import mnist
from runs.directory import data_root
from runs.errors import UserError, one_line_errors
from runs.options import Parser


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--root", type=Path, default=data_root(), help="folder of data sets")
    root = parser.parse_args(argv).root
    try:
        mnist.prepare(root)
    except (OSError, ValueError) as error:
        raise UserError(f"--root {root}: {error}") from None
    print(f"MNIST is in {root / 'MNIST' / 'raw'}")


if __name__ == "__main__":
    main()
