"""Write each measurement to disk at once, to a file of JSON lines that survives an interrupt and can be continued.

The first line has the facts: the settings and the machine. Each further line is a record. A record is on disk before
the next one is measured. An incomplete last line is dropped and measured again.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from specdec_ref.errors import SpecdecError

Record = dict[str, Any]


class Recording:
    """The records of one series of measurements.

    Args:
        file: None keeps them in memory only.
        facts: settings, models, machine, versions: all records in a file share them.

    Attributes:
        records: those already in the file, then those that `append` adds.

    Raises:
        SpecdecError: the file has other facts, or is not a recording.
    """

    def __init__(self, file: Path | None, facts: Record):
        self.facts: Record = json.loads(json.dumps(facts))  # as they will be read back
        self.records: list[Record] = []
        self._file: BinaryIO | None = None
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            whole = file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise SpecdecError(f"{file}: cannot be used: {error.strerror or error}") from error
        lines, length = _whole_lines(file, whole)
        if lines:
            _check_same(file, lines[0], self.facts)
            self.records = lines[1:]
        self._file = file.open("r+b" if file.exists() else "w+b")
        self._file.truncate(length)
        self._file.seek(length)
        if not lines:
            self._write(self.facts)

    def append(self, record: Record) -> None:
        """Add a record. It is on disk when this returns."""
        self._write(record)
        self.records.append(json.loads(json.dumps(record)))  # as it will be read back

    def _write(self, record: Record) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, so that it can be moved. No data is lost without this call."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(file: Path) -> tuple[Record, list[Record]]:
    """The facts and records of a recording. Raises SpecdecError for another file."""
    if not file.is_file():
        raise SpecdecError(f"{file}: no such recording")
    lines, _ = _whole_lines(file, file.read_bytes())
    if not lines:
        raise SpecdecError(f"{file}: is no recording of ours: it is empty")
    return lines[0], lines[1:]


def _whole_lines(file: Path, content: bytes) -> tuple[list[Record], int]:
    """The records of the complete lines, and their size in bytes. Only the last line may be incomplete."""
    lines, length = [], 0
    pieces = content.split(b"\n")  # the last piece is the text after the last line end: empty, or an incomplete line
    for number, piece in enumerate(pieces[:-1], 1):
        try:
            record = json.loads(piece)
            if not isinstance(record, dict):
                raise ValueError("not a record")
        except ValueError as error:
            if number == len(pieces) - 1 and number > 1:
                break
            raise SpecdecError(f"{file}: is no recording of ours: line {number} cannot be read") from error
        lines.append(record)
        length += len(piece) + 1
    return lines, length


def _check_same(file: Path, there: Record, here: Record) -> None:
    for name in {**here, **there}:
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            name, old, new = next((n, old.get(n), new.get(n)) for n in {**new, **old} if old.get(n) != new.get(n))
        if old != new:
            raise SpecdecError(
                f"{file}: holds measurements with {name} = {old!r:.80}, not {new!r:.80}; give another folder"
            )
