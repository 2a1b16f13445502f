"""Label files: CSV, text, Parquet, and lists of class names."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath

import numpy as np

from hbr_fast.arguments import near_names
from hbr_fast.csv_files import polars_faults, require_readable_parquet
from hbr_fast.data.sources.trees import PackedNames
from hbr_fast.files import reason
from hbr_fast.progress import printable

FILE_COLUMNS = (
    "file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_name", "image_path", "imageid",
    "image_id", "img", "img_path", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "class_name", "classname", "label_name", "category", "target", "y", "class_id",
    "label_id", "class_idx", "predictionstring",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
_WORDNET_ID = re.compile(r"n\d{8}")
_MOST_DIGITS = 18  # of a class's number
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True, eq=False)
class Column:
    """A column of N words of which few are different.

    Attributes
    ----------
    words : sequence of str
        The different ones, in order of their first use.
    word_n : int32 [N]
        Index into `words`.
    """

    words: Sequence[str]
    word_n: np.ndarray

    def numbers(self) -> list[int] | None:
        """The words as whole numbers, or None if some are not."""
        try:
            return [int(word) for word in self.words]
        except ValueError:
            return None


@dataclass(frozen=True, eq=False)
class Table:
    """The label of each file, as stated in the table: all whole numbers, or all names.

    Attributes
    ----------
    where : str
        The table's file, for messages.
    files : sequence of str [N]
    labels : Column [N]
    splits : Column [N] or None
        The split of each file, if the table says it.
    notes : sequence of str
        Lines for the user.
    """

    where: str
    files: Sequence[str]
    labels: Column
    splits: Column | None = None
    notes: Sequence[str] = ()

    @property
    def is_ground_truth(self) -> bool:
        """Whether this is ImageNet's own list, whose numbers follow an order of their own."""
        return PurePosixPath(self.where).name == GROUND_TRUTH


class _Words:
    """A column that is filled word by word."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._codes = array("i")

    def append(self, word: str) -> None:
        self._codes.append(self._index.setdefault(word, len(self._index)))

    def column(self) -> Column:
        return Column(list(self._index), np.array(self._codes, dtype=np.int32))


def normal(name: str) -> str:
    """Normalise accented letters to NFC: systems write them in two ways that look the same."""
    return unicodedata.normalize("NFC", name)


def read_table(content: bytes, where: str, *, file_column: str | None = None, label_column: str | None = None) -> Table:
    """Read a table of labels.

    Parameters
    ----------
    content : bytes
        Parquet; or text with commas, semicolons, tabs or, in a `.txt`, spaces between columns, in UTF-8 or Latin-1.
        The first row names the columns unless there are only two and neither has a usual name.
    where : str
        The file's path, for its suffix and for messages.
    file_column, label_column : str, optional
        Needed if the columns have no usual names.

    Raises
    ------
    ValueError
        If it cannot be read, or a column is missing: the message lists the columns.
    """
    notes: list[str] = []
    if PurePosixPath(where).name == GROUND_TRUTH:
        return _ground_truth(content, where)
    if content[:4] == b"PAR1":
        header, rows = _parquet(content, where)
    else:
        header, rows = _text(content, where, notes, named=file_column is not None or label_column is not None)
    file_at = _column(header, file_column, FILE_COLUMNS, "file", "--file-column", where, default=0)
    label_at = _column(header, label_column, LABEL_COLUMNS, "label", "--label-column", where, default=1)
    split_at = next((i for i, name in enumerate(header) if name.lower() in SPLIT_COLUMNS), None)
    if file_at == label_at:
        raise ValueError(f"{where}: file and label are both in column {header[file_at]!r}: say --label-column")
    needed = max(file_at, label_at, -1 if split_at is None else split_at)
    is_kaggles = header[label_at].lower() == "predictionstring"  # the class, then boxes
    files, labels, splits = PackedNames(), _Words(), _Words()
    short, unlabelled = list[int](), list[str]()
    for number, row in enumerate(rows, 1):
        if len(row) <= needed:
            short.append(number)
            continue
        label = normal(row[label_at].strip())
        if is_kaggles:
            label = label.partition(" ")[0]
        file = normal(row[file_at].strip().replace("\\", "/")).removeprefix("./")
        if not label:
            unlabelled.append(file)
        files.append(file)
        labels.append(label)
        if split_at is not None:
            splits.append(row[split_at].strip())
    if short:
        raise ValueError(f"{where}: row {short[0]} has fewer columns than the others ({len(short)} such): correct it")
    if not files:
        raise ValueError(f"{where} holds no row: give the file with the labels")
    if unlabelled:
        raise ValueError(
            f"{where}: {printable(unlabelled[0])} has no label ({len(unlabelled)} such): give it one or remove the row"
        )
    return Table(where, files, labels.column(), None if split_at is None else splits.column(), notes)


def _ground_truth(content: bytes, where: str) -> Table:
    """ImageNet's list of numbers: line 1 is the class of ILSVRC2012_val_00000001."""
    words = content.decode("latin-1").split()
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"{where} is not a list with the number of a class in each line: take it from the "
                         "development kit")  # fmt: skip
    labels = _Words()
    for word in words:
        labels.append(word)
    return Table(where, PackedNames(f"ILSVRC2012_val_{row:08d}" for row in range(1, len(words) + 1)), labels.column())


def read_class_names(content: bytes, where: str) -> dict[int, str]:
    """Names of numbered classes.

    JSON: a list of names, `{"cat": 0}`, `{"0": "cat"}` or `{"0": ["n01440764", "tench"]}`. Text: one name per line; a
    number and a name; or, as in ImageNet's `map_clsloc.txt`, a WordNet id, a number and words.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    text = _decoded(content, [], where)
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: give a JSON list or object of names") from None
    except ValueError:
        return _names_in_lines([line.strip() for line in text.splitlines() if line.strip()], where)
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return {index: normal(name) for index, name in enumerate(value)}
    if isinstance(value, dict) and value:
        names: dict[int, str] = {}
        for key, entry in value.items():
            if isinstance(entry, int) and not isinstance(entry, bool):
                names[entry] = normal(key)
            elif _is_number(key):
                name = entry[-1] if isinstance(entry, list) and entry else entry
                if isinstance(name, str):
                    names[int(key)] = normal(name)
        if len(names) == len(value):
            return names
    raise ValueError(
        f'{where} does not name classes: give a JSON list, {{"cat": 0}}, {{"0": "cat"}}, or text with a name a line'
    )


def _is_number(word: str) -> bool:
    return word.isdecimal() and len(word) <= _MOST_DIGITS


def _names_in_lines(lines: list[str], where: str) -> dict[int, str]:
    pairs = [line.replace(",", " ", 1).split(None, 1) for line in lines]
    if pairs and all(len(pair) == 2 and _is_number(pair[0]) for pair in pairs):
        return {int(number): normal(name) for number, name in pairs}
    triples = [line.split(None, 2) for line in lines]
    if triples and all(len(one) == 3 and _WORDNET_ID.fullmatch(one[0]) and _is_number(one[1]) for one in triples):
        return {int(number): name for name, number, _ in triples}
    if not lines:
        raise ValueError(f"{where} is empty: give a class name a line")
    return {index: normal(line) for index, line in enumerate(lines)}


def _decoded(content: bytes, notes: list[str], where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        notes.append(f"{where} is not UTF-8 and was read as Latin-1")
        return content.decode("latin-1")


def _text(content: bytes, where: str, notes: list[str], *, named: bool) -> tuple[list[str], Iterator[Sequence[str]]]:
    text = _decoded(content, notes, where)
    if "\0" in text:
        raise ValueError(f"{where} is not a table: give CSV, Parquet or text")
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = _separated(text, delimiter, where) if first.count(delimiter) else _spaced(text)
    try:
        top = next(rows)
    except StopIteration:
        return ["", ""], iter(())
    known = {*FILE_COLUMNS, *LABEL_COLUMNS}
    header = [normal(name.strip()) for name in top]
    if named or any(name.lower() in known for name in header):
        return header, rows
    return [f"column {number}" for number in range(1, len(header) + 1)], chain([top], rows)


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends, without a copy of the text, which `io.StringIO` would keep at four bytes a letter."""
    if "\n" not in text:
        text = text.replace("\r", "\n")
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _separated(text: str, delimiter: str, where: str) -> Iterator[Sequence[str]]:
    reader = csv.reader(_lines(text), delimiter=delimiter)
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        raise ValueError(f"{where}, line {reader.line_num}, is not a row of a table ({error}): correct it") from None


def _spaced(text: str) -> Iterator[Sequence[str]]:
    return (line.rsplit(None, 1) for line in _lines(text) if line.strip())


def _parquet(content: bytes, where: str) -> tuple[list[str], Iterator[Sequence[str]]]:
    import polars  # heavy, and needed for this only

    try:
        require_readable_parquet(content)
        frame = polars.read_parquet(content)
        columns = [
            series.cast(polars.String).fill_null("")
            for series in frame.get_columns()
            if not series.dtype.is_nested() and series.dtype != polars.Binary
        ]
    except polars_faults() as error:
        raise ValueError(f"{where} is not a readable Parquet file ({reason(error)}): write it again") from None
    return [series.name for series in columns], zip(*columns, strict=True)


def _column(
    header: Sequence[str],
    wanted: str | None,
    usual: Sequence[str],
    what: str,
    option: str,
    where: str,
    *,
    default: int,
) -> int:
    if wanted is not None:
        if normal(wanted) in header:
            return header.index(normal(wanted))
        near = near_names(wanted, header)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {printable(', '.join(header))}"
        raise ValueError(f"{where} has no column {wanted!r}: {hint}")
    lower = [name.lower() for name in header]
    for name in usual:
        if name in lower:
            return lower.index(name)
    if default < len(header) and (len(header) == 2 or header[0] == "column 1"):
        return default
    raise ValueError(
        f"{where} has columns {printable(', '.join(header))}: say which one holds the {what} with {option}"
    )
