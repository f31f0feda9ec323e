"""Where a study's trials are kept: a journal file beside its results, or a database that several machines can reach."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from nava_lab.study.grammar import StudyError

JOURNAL = "journal.log"
DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("MySQLdb", "pymysql")}  # SQLAlchemy's default, and our extra's
TRIES = 5


class _Lock(BaseJournalFileLock):
    """A lock that the system lifts when its holder dies, and that cuts off a line which a dead holder left unfinished.

    Optuna's own locks are files: one that a killed worker leaves behind stops everybody for half a minute.
    """

    def __init__(self, journal: Path):
        self.journal = journal
        self.lock = FileLock(f"{journal}.flock")

    def acquire(self) -> bool:
        self.lock.acquire()
        mend(self.journal)
        return True

    def release(self) -> None:
        self.lock.release()


def mend(journal: Path) -> None:
    """Cut off what follows the last whole line."""
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        start = max(0, size - 65_536)
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)


def open_storage(place: str) -> BaseStorage:
    """The storage at ``place``: a database's URL, or a journal file's path."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if "://" not in place:
        path = Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_Lock(path)))
    url = _with_driver(place)
    for attempt in range(1, TRIES + 1):
        try:
            return optuna.storages.get_storage(url)
        except ImportError as error:
            scheme = place.split("://")[0].split("+")[0]
            extra = f"'nava-lab[{scheme}]'" if scheme in DRIVERS else "the driver"
            raise StudyError(f"--storage {_without_password(place)}: {error}; pip install {extra}") from None
        except Exception as error:  # two workers may create the tables at once, and drivers share no error class
            if attempt == TRIES:
                reason = str(error).splitlines()[0]
                raise StudyError(f"--storage {_without_password(place)} cannot be opened: {reason}") from None
            time.sleep(0.3 * attempt)
    raise AssertionError


def _with_driver(url: str) -> str:
    """The URL with a driver that is installed, where it names none."""
    from importlib.util import find_spec

    scheme, rest = url.split("://", 1)
    default, ours = DRIVERS.get(scheme, ("", ""))
    return f"{scheme}+{ours}://{rest}" if ours and find_spec(default) is None else url


def _without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    return f"{before.split('://')[0]}://...@{after}" if at else url


def repeatable(place: str) -> str:
    """A storage as it may be written down: a URL without its password, which must be given again; a path as it is."""
    scheme, between, rest = place.partition("://")
    if not between:
        return place
    secret, at, server = rest.rpartition("@")
    server, _, asked = server.partition("?")
    kept = "&".join(part for part in asked.split("&") if part and not part.startswith(("password=", "passwd=")))
    return f"{scheme}://{secret.partition(':')[0]}{at}{server}{'?' if kept else ''}{kept}"
