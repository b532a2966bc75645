"""Make notMNIST: the letters A-J as 28x28 images, bright on dark, in $DATA_ROOT/not-mnist/MNIST/raw.

    python data/prepare_not_mnist.py --archive notMNIST_small.tar.gz     its own archive, or the unpacked folder
    python data/prepare_not_mnist.py [--fonts DIR ...]                   its recipe, on the fonts of this machine or DIR

The recipe draws each letter of a typeface to fill the image. Fonts without Latin capitals are dropped, and so are
duplicates. Train and test come from different font families; an archive does not name its fonts, there the images of
one file name stay together.
"""

import hashlib
import io
import sys
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
from matplotlib.font_manager import findSystemFonts
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it also runs as a script

from data.prepare_mnist import MAX_BYTES, idx_bytes
from runs import Parser, UserError, command, data_root, number, write_whole

LETTERS = "ABCDEFGHIJ"
SIZE = 28
DRAWN = 112  # glyphs are drawn this high and scaled down, for smooth edges
FONT_SUFFIXES = {".ttf", ".otf", ".ttc", ".pfb"}
MISSING = "\uffff"  # no font has this character: what is drawn for it is the font's sign for a missing glyph

# (image, label, group): images of one group, a font family, go all to train or all to test.
Glyph = tuple[np.ndarray, int, str]


def draw(font: ImageFont.FreeTypeFont, letter: str) -> np.ndarray | None:
    """The letter as (28, 28) uint8, scaled to fill the image; None where the font draws nothing."""
    left, top, right, bottom = font.getbbox(letter)
    if right <= left or bottom <= top or max(right - left, bottom - top) > 20 * DRAWN:
        return None
    canvas = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), letter, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    glyph = ImageOps.contain(canvas.crop(box), (SIZE, SIZE), Image.Resampling.LANCZOS)
    image = Image.new("L", (SIZE, SIZE))
    image.paste(glyph, ((SIZE - glyph.width) // 2, (SIZE - glyph.height) // 2))
    return np.asarray(image)


def glyphs_of_font(path: Path) -> list[Glyph]:
    """The letters of one font file; none where it lacks Latin capitals. Raises OSError where it cannot be read."""
    font = ImageFont.truetype(str(path), DRAWN)
    images = [draw(font, letter) for letter in LETTERS]
    missing = draw(font, MISSING)
    seen = {image.tobytes() for image in images if image is not None}
    if len(seen) < len(LETTERS) or (missing is not None and missing.tobytes() in seen):
        return []
    family = font.getname()[0] or path.stem
    return [(image, label, family) for label, image in enumerate(images)]


def from_fonts(folders: list[Path]) -> tuple[list[Glyph], Counter]:
    """The glyphs of all fonts below the folders, or of this machine's where none are named, and what was left out."""
    if folders:
        paths = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in FONT_SUFFIXES)
    else:
        paths = sorted(map(Path, findSystemFonts()))
    glyphs, dropped = [], Counter()
    for path in tqdm(paths, desc="fonts", disable=None):
        try:
            found = glyphs_of_font(path)
        except (OSError, ValueError):
            dropped["unreadable fonts"] += 1
            continue
        dropped["fonts without Latin capitals"] += not found
        glyphs += found
    return glyphs, dropped


def archive_files(path: Path):
    """(name, bytes) of the files of a folder or a tar archive, in order of name. Nothing is unpacked to disk."""
    if path.is_dir():
        for file in sorted(path.rglob("*.png")):
            yield file.relative_to(path.parent).as_posix(), file.read_bytes()[:MAX_BYTES]
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".png") and member.size <= MAX_BYTES:
                    yield member.name, archive.extractfile(member).read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"--archive: {path}: {error}, expected notMNIST's tar file or folder") from None


def from_archive(path: Path) -> tuple[list[Glyph], Counter]:
    """The images in the archive's folders A-J, and what was left out."""
    glyphs, dropped = [], Counter()
    for name, content in tqdm(archive_files(path), desc="images", disable=None):
        letter = PurePosixPath(name).parent.name
        if letter not in LETTERS or len(letter) != 1:
            continue
        try:
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            if image.size != (SIZE, SIZE):
                raise ValueError(f"{image.size}")
            glyphs.append((np.asarray(image.convert("L")), LETTERS.index(letter), PurePosixPath(name).stem))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            dropped["unreadable images"] += 1
    return glyphs, dropped


def drop_duplicates(glyphs: list[Glyph]) -> list[Glyph]:
    """The glyphs without those whose pixels came before, whatever their letter."""
    first = {image.tobytes(): (image, label, group) for image, label, group in reversed(glyphs)}
    return list(first.values())[::-1]


def is_test(group: str, test_share: float) -> bool:
    """Whether a family is in the test set: by a hash of its name, so that a font added later moves no other."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) < test_share * 2**32


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, help="notMNIST's tar file, or its unpacked folder")
    source.add_argument("--fonts", type=Path, nargs="+", default=[], help="folders of fonts; default: this machine's")
    parser.add_argument("--root", type=Path, default=data_root(), help="folder of data sets")
    parser.add_argument("--test_share", type=number(float, 0, 1), default=0.3, help="share of families in test")
    args = parser.parse_args(argv)

    for option, paths in (("--archive", [args.archive] if args.archive else []), ("--fonts", args.fonts)):
        for path in paths:
            if not path.exists():
                raise UserError(f"{option}: {path} does not exist")
    glyphs, dropped = from_archive(args.archive) if args.archive else from_fonts(args.fonts)
    unique = drop_duplicates(glyphs)
    dropped["duplicates"] = len(glyphs) - len(unique)
    print("left out:", ", ".join(f"{count} {what}" for what, count in dropped.items()))

    parts = {"train": [g for g in unique if not is_test(g[2], args.test_share)]}
    parts["t10k"] = [g for g in unique if is_test(g[2], args.test_share)]
    for part, members in parts.items():
        if {label for _, label, _ in members} != set(range(len(LETTERS))):
            raise UserError(f"{'--archive' if args.archive else '--fonts'}: {len(members)} images left for {part}, "
                            f"expected all of {LETTERS}; name more fonts")  # fmt: skip
    raw = args.root / "not-mnist" / "MNIST" / "raw"
    for part, members in parts.items():
        order = np.random.default_rng(0).permutation(len(members))
        images = np.stack([members[i][0] for i in order])
        labels = np.array([members[i][1] for i in order], dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            with write_whole(raw / f"{part}-{kind}-ubyte") as file:
                file.write(idx_bytes(array))
        print(f"{part}: {len(labels)} images, per letter {np.bincount(labels).tolist()}")
    print(f"notMNIST is in {raw}")


if __name__ == "__main__":
    main()
