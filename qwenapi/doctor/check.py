"""Check: one thing that was looked at, how it is, and what to do where it is not well."""

from dataclasses import dataclass
from enum import StrEnum

from workers.errors import WorkerError

GIB = 1 << 30


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Check:
    """`what` is the thing and how it is, `remedy` begins with a verb."""

    name: str
    outcome: Outcome
    what: str
    why: str = ""
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """Return the words in which a start is refused."""
        why = f": {self.why}" if self.why else ""
        return f"{self.what}{why}" + (f"; {self.remedy}" if self.remedy else "")


def ok(name: str, what: str) -> Check:
    return Check(name, Outcome.OK, what)


def warning(name: str, what: str, why: str, remedy: str) -> Check:
    return Check(name, Outcome.WARNING, what, why, remedy)


def failure(name: str, what: str, why: str, remedy: str) -> Check:
    return Check(name, Outcome.FAILURE, what, why, remedy)


def refused(name: str, error: WorkerError) -> Check:
    """Return the failure an error tells of; it has the form `what: why; remedy`."""
    what, _, rest = str(error).partition(": ")
    why, _, remedy = rest.rpartition("; ")
    return Check(name, Outcome.FAILURE, what, why or remedy, remedy if why else "")


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
