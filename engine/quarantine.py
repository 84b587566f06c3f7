"""Which devices are kept out of service because launches fail on them again and again.

Pure accounting. A failed launch leaves its request's mark on the device; `SUCCESSES_PER_MARK` that
succeed take one away, so that what is left is a failure rate above a fifth. Three requests, or one
that fails there twice, put the device into quarantine, each time for twice as long. Then it is on
probation: one more failure sends it back. Marks of a request that is given up are taken back: it
failed wherever it was, so it was to blame itself.
"""

from __future__ import annotations

from engine.errors import LedgerError
from engine.types import DeviceId, RequestId

MARKS = 3
SUCCESSES_PER_MARK = 4
FIRST_S, LONGEST_S = 30.0, 1800.0
_MOST_DOUBLINGS = 10  # beyond the longest stay; a float has room for a thousand


class _Record:
    """What is held against one device."""

    __slots__ = ("marks", "stays", "successes", "until_s")

    def __init__(self) -> None:
        self.marks: list[RequestId] = []  # oldest first
        self.successes = 0  # since the last mark went
        self.stays = 0  # in quarantine since the device was last trusted
        self.until_s: float | None = None


class Quarantine:
    """Marks and stays of all devices; devices without either are not listed."""

    def __init__(self) -> None:
        """Trust every device."""
        self._records: dict[DeviceId, _Record] = {}

    def devices(self, now_s: float) -> dict[DeviceId, float]:
        """Return the devices in quarantine and when each comes out; lets out whose time is over."""
        for record in self._records.values():
            if record.until_s is not None and record.until_s <= now_s:
                record.until_s = None
        return {d: r.until_s for d, r in self._records.items() if r.until_s is not None}

    def sooner(self, at_s: float | None, now_s: float) -> float | None:
        """Return `at_s`, or the moment before it at which a device comes out."""
        moments = [*self.devices(now_s).values(), *([] if at_s is None else [at_s])]
        return min(moments, default=None)

    def mark(self, device: DeviceId, request: RequestId, now_s: float, *, spare: bool) -> bool:
        """Hold a failure against a device; return whether that puts it into quarantine.

        With `spare` it stays in service whatever it did, because no other device is left.
        """
        record = self._records.setdefault(device, _Record())
        if record.until_s is not None:
            return False
        record.successes = 0
        is_second = request in record.marks
        if not is_second:
            record.marks = [*record.marks, request][-MARKS:]
        if len(record.marks) < MARKS and not is_second and not record.stays:
            return False
        if spare:
            record.marks = record.marks[1 - MARKS :]
            return False
        doublings = min(record.stays, _MOST_DOUBLINGS)
        record.until_s = now_s + min(LONGEST_S, FIRST_S * 2**doublings)
        record.stays += 1
        return True

    def succeeded(self, device: DeviceId) -> None:
        """Count a launch that ended well."""
        record = self._records.get(device)
        if record is None or record.until_s is not None:
            return
        record.successes += 1
        if record.successes >= SUCCESSES_PER_MARK:
            record.successes = 0
            del record.marks[:1]
            if not record.marks:
                del self._records[device]

    def acquit(self, request: RequestId) -> None:
        """Take back every mark of a request that turned out to be the cause itself."""
        for device, record in list(self._records.items()):
            if request in record.marks:
                record.marks.remove(request)
                if record.until_s is not None:
                    record.until_s = None
                    record.stays -= 1
            if not record.marks:
                del self._records[device]

    def check_integrity(self) -> None:
        """Raise `LedgerError` if a device is in quarantine without cause, or out in spite of it."""
        for device, record in self._records.items():
            held, is_in = len(record.marks), record.until_s is not None
            most = MARKS if record.stays else MARKS - 1
            if not 0 < held <= most or len(set(record.marks)) != held or (is_in > record.stays):
                message = f"Quarantine of {device} is broken: {record.marks}, {record.stays} stays."
                raise LedgerError(message)
