"""notMNIST, the letters A-J as 28x28 images, bright on dark: from its own archive, by its recipe from fonts, from IDX.

The recipe draws each letter of a typeface so that it fills the image. Fonts without Latin capitals and
duplicate images are dropped. Training and test images come from different font families. An archive does not name its
fonts, so its images with equal file names count as one family. The images of IDX files named train and t10k keep their
part; of other IDX files each image is a family of its own.
"""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import findSystemFonts
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from data.idx import (
    MAX_BYTES,
    Part,
    idx_bytes,
    of_classes,
    parse_part,
    parse_parts,
    part_files,
    read_idx_bytes,
    write_file,
)

FOLDER = Path("not-mnist", "MNIST", "raw")  # of the IDX files, in the folder of data sets
LETTERS = "ABCDEFGHIJ"
SIZE = 28
DRAWN = 112  # font size in pixels; glyphs are scaled down to SIZE, for smooth edges
FONT_SUFFIXES = {".ttf", ".otf", ".ttc", ".pfb"}
MISSING = "\uffff"  # no font has this character, so it is drawn as the font's missing-glyph sign
PARTS = {"train": False, "t10k": True}  # names of the parts in IDX files, and whether a part is for testing


class Glyph(NamedTuple):
    """An image of a letter.

    image : (28, 28) uint8.
    family : of the font. All images of a family go to the same part, which `is_test` chooses.
    test : whether the image is for testing, where this is known; else None.
    """

    image: np.ndarray
    label: int
    family: str
    source: str
    test: bool | None = None


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
    return [Glyph(image, label, family, "fonts") for label, image in enumerate(images)]


def from_fonts(folders: list[Path]) -> tuple[list[Glyph], Counter]:
    """The glyphs of all fonts below the folders, or of all fonts of this machine, and counts of fonts left out."""
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


def archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the PNG files of a folder or a tar archive, in any order. Raises ValueError if unreadable."""
    if path.is_dir():
        for file in path.rglob("*.png"):
            yield file.relative_to(path.parent).as_posix(), file.read_bytes()[:MAX_BYTES]
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".png") and member.size <= MAX_BYTES:
                    yield member.name, archive.extractfile(member).read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ValueError(f"{path}: {error}, expected notMNIST's tar file or folder") from None


def from_archive(path: Path) -> tuple[list[Glyph], Counter]:
    """The images in the archive's folders A-J, by letter and file name, and counts of what was left out.

    The order is that of the names, however the archive is packed, since a split seed picks images by their place.
    """
    found, dropped = [], Counter()
    for name, content in tqdm(archive_files(path), desc="images", disable=None):
        letter = PurePosixPath(name).parent.name
        if letter not in LETTERS or len(letter) != 1:
            continue
        try:
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            if image.size != (SIZE, SIZE):
                raise ValueError(f"{image.size}")
            pixels = np.asarray(image.convert("L"))
            glyph = Glyph(pixels, LETTERS.index(letter), PurePosixPath(name).stem, "archive")
            found.append(((letter, PurePosixPath(name).name, name), glyph))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            dropped["unreadable images"] += 1
    return [glyph for _, glyph in sorted(found, key=lambda item: item[0])], dropped


def from_idx(folder: Path) -> tuple[list[Glyph], Counter]:
    """The images of all pairs of IDX files <name>-images-idx3-ubyte and <name>-labels-idx1-ubyte in a folder.

    The files may be gzipped. The counts of what was left out are empty. Raises ValueError for files of another kind,
    and OSError for missing ones.
    """
    names = sorted({path.name.split("-images-idx3-ubyte")[0] for path in folder.glob("*-images-idx3-ubyte*")})
    if not names:
        raise ValueError(f"{folder}: found no file *-images-idx3-ubyte or *-images-idx3-ubyte.gz")
    glyphs = []
    for name in names:
        files = (read_idx_bytes(folder / file) for file in part_files(name))
        images, labels = parse_part(*files, str(folder / name))
        if images.shape[2:] != (SIZE, SIZE) or labels.max() >= len(LETTERS):
            found = f"found images {images.shape[2:]} and labels up to {labels.max()}"
            raise ValueError(f"{folder / name}: {found}, expected ({SIZE}, {SIZE}) and labels up to 9")
        for image, label in zip(images[:, 0], labels, strict=True):
            family = hashlib.sha256(image.tobytes()).hexdigest()
            glyphs.append(Glyph(image, int(label), family, str(folder), PARTS.get(name)))
    return glyphs, Counter()


def drop_duplicates(glyphs: list[Glyph]) -> list[Glyph]:
    """The glyphs without those whose pixels equal those of an earlier glyph, of any letter."""
    first = {glyph.image.tobytes(): glyph for glyph in reversed(glyphs)}
    return list(first.values())[::-1]


def is_test(family: str, test_share: float) -> bool:
    """Whether a family is in the test set, by a hash of its name: added fonts do not move other families."""
    return int(hashlib.sha256(family.encode()).hexdigest()[:8], 16) < test_share * 2**32


def write(glyphs: list[Glyph], test_share: float, root: Path) -> dict[str, list[Glyph]]:
    """Split glyphs by family and write them as IDX files into `root`/not-mnist/MNIST/raw.

    Returns the glyphs of each part. Raises ValueError if a part lacks a letter, OSError if a write fails.
    """
    parts: dict[str, list[Glyph]] = {part: [] for part in PARTS}
    for glyph in glyphs:
        test = is_test(glyph.family, test_share) if glyph.test is None else glyph.test
        parts["t10k" if test else "train"].append(glyph)
    for part, members in parts.items():
        if {glyph.label for glyph in members} != set(range(len(LETTERS))):
            raise ValueError(f"{len(members)} images left for {part}, expected all of {LETTERS}; name more fonts")
    for part, members in parts.items():
        members = [members[i] for i in np.random.default_rng(0).permutation(len(members))]
        images, labels = (np.stack([getattr(glyph, name) for glyph in members]) for name in ("image", "label"))
        for file, array in zip(part_files(part), (images, labels), strict=True):
            write_file(root / FOLDER / file, idx_bytes(array))
    return parts


def load(root: Path) -> list[Part]:
    """Training and test part. Raises ValueError for an invalid file, and OSError for a missing one."""
    names = [name for part in PARTS for name in part_files(part)]
    try:
        files = {name: read_idx_bytes(root / FOLDER / name) for name in names}
    except OSError as error:
        raise OSError(f"{error}; make it with python data/prepare_not_mnist.py") from None
    return parse_parts(files, "not-mnist")


def load_letters(root: Path, classes: range) -> list[Part]:
    """The images of some letters, relabelled from 0. Raises as `load`."""
    return [of_classes(part, classes) for part in load(root)]


letters_a_to_e = partial(load_letters, classes=range(5))
letters_f_to_j = partial(load_letters, classes=range(5, 10))
