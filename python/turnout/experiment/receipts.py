"""Prediction ids as receipts: the key of a data directory, and what a receipt says."""

from __future__ import annotations

import contextlib
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from turnout import _core
from turnout.domain import REASONS, Reason
from turnout.errors import InvalidReceipt, StorageError

KEY_BYTES = 32
KEY_FILE = "receipt.key"


class Receipt(msgspec.Struct, frozen=True):
    """What a prediction was: `version` by its number, `test` and `segment` 0 where none ran; `entity` is a hash.

    `score` is the probability of the second of two classes, of the likeliest of more (`predicted` is its index), or the
    value of a regressor; None where the version gave no number.
    """

    model: str
    version: int
    time: datetime
    reason: Reason
    entity: bytes | None
    test: int
    segment: int
    score: float | None
    predicted: int

    @property
    def ms(self) -> int:
        """The time in Unix milliseconds."""
        return round(self.time.timestamp() * 1000)


class Signers:
    """The keys of a data directory, made when it is first opened; who copies the file can read its receipts elsewhere."""

    def __init__(self, data: Path) -> None:
        self.key = _read_or_make(data / KEY_FILE)
        self._signers: dict[str, _core.Signer] = {}

    def signer(self, model: str) -> _core.Signer:
        """The keys of a model."""
        found = self._signers.get(model)
        if found is None:
            found = self._signers[model] = _core.Signer(self.key, model)
        return found

    def entity(self, entity: str | int) -> bytes:
        """The hash of an entity, the same for all models."""
        return self.signer("").entity(entity)

    def read(self, model: str, prediction_id: str) -> Receipt:
        """What a prediction id says. Raises InvalidReceipt for one that was not given here, by this model."""
        # What is no text cannot be one of ours.
        found = self.signer(model).read(prediction_id) if prediction_id.isascii() else None
        if found is None:
            raise InvalidReceipt(
                f"the prediction id was not given by model {model} of this data directory, or was altered: expected it "
                "as it came with the prediction"
            )
        milliseconds, reason, entity, version, test, segment, score, predicted = found
        return Receipt(
            model=model,
            version=version,
            time=datetime.fromtimestamp(milliseconds / 1000, UTC),
            reason=REASONS[reason],
            entity=entity,
            test=test,
            segment=segment,
            score=score,
            predicted=predicted,
        )


def _read_or_make(path: Path) -> bytes:
    """The key in a file; whoever comes first makes it, whole or not at all. Raises StorageError."""
    try:
        if not path.exists():
            half = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            file = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, secrets.token_bytes(KEY_BYTES))
                os.fsync(file)
                with contextlib.suppress(FileExistsError):
                    os.link(half, path)
            finally:
                os.close(file)
                half.unlink(missing_ok=True)
        key = path.read_bytes()
    except OSError as error:
        raise StorageError(f"the key {path} cannot be read or made: {error}") from error
    if len(key) != KEY_BYTES:
        raise StorageError(
            f"the key {path} has {len(key)} bytes, not {KEY_BYTES}: put the right file back, since with another one no "
            "prediction id that was given before can be read"
        )
    return key
