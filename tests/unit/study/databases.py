"""Servers of the tests' own, in folders of theirs: PostgreSQL, and MariaDB for MySQL; skips where one is not installed."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest


def _program(*names, under="/usr/lib/postgresql"):
    folders = [*sorted(map(str, Path(under).glob("*/bin")), reverse=True), "/usr/sbin", "/usr/local/sbin"]
    places = [shutil.which(name, path=path) for name in names for path in (None, *folders)]
    return next((place for place in places if place), None)


def _own_place(folder, account, prefix):
    """Where a server lives, and as whom it runs: not as root."""
    if os.geteuid():
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(folder), {}
    import pwd

    try:
        user = pwd.getpwnam(account)
    except KeyError:
        pytest.skip(f"the server does not run as root, and there is no user {account}")
    place = Path(os.path.realpath(subprocess.check_output(["mktemp", "-d", f"/tmp/{prefix}-XXXXXX"], text=True).strip()))
    os.chown(place, user.pw_uid, user.pw_gid)
    return place, {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def _served(command, port, place, as_user, quiet, stop):
    process = subprocess.Popen(command, **quiet)
    try:
        limit = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < limit
                time.sleep(0.1)
        yield
    finally:
        process.send_signal(stop)
        process.wait(30)
        if as_user:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def postgresql(folder):
    """The URL of a fresh, empty database."""
    initdb, server = _program("initdb"), _program("postgres")
    if not initdb or not server:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'nava-lab[postgresql]'")
    place, as_user = _own_place(folder, "postgres", "nava-pg")
    port, data = _free_port(), place / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **as_user}
    subprocess.run([initdb, "-D", data, "-U", "nava", "-A", "trust", "--no-sync"], check=True, timeout=120, **quiet)
    settings = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={place}", "-p", str(port)]
    # SIGINT does not wait for clients to leave.
    with _served([server, "-D", data, *settings], port, place, as_user, quiet, signal.SIGINT):
        yield f"postgresql://nava@127.0.0.1:{port}/postgres"


@contextmanager
def mysql(folder):
    """The same of MariaDB, which speaks as MySQL does."""
    install, server = _program("mariadb-install-db"), _program("mariadbd")
    if not install or not server:
        pytest.skip("MariaDB is not installed: apt-get install mariadb-server")
    pytest.importorskip("pymysql", reason="pymysql is not installed: pip install 'nava-lab[mysql]'")
    place, as_user = _own_place(folder, "mysql", "nava-my")
    port, data = _free_port(), place / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **as_user}
    (place / "begin.sql").write_text("CREATE DATABASE nava;\n")
    # Its log begins small: by default 96 MB are written before the first query.
    small = ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0"]
    plain = [f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db", *small[:2]]
    subprocess.run([install, "--no-defaults", *plain], check=True, timeout=120, **quiet)
    settings = [f"--datadir={data}", f"--socket={place}/s", f"--port={port}", "--bind-address=127.0.0.1", *small]
    settings += [f"--init-file={place}/begin.sql", "--skip-name-resolve", f"--pid-file={place}/pid", f"--log-error={place}/log"]
    with _served([server, "--no-defaults", *settings], port, place, as_user, quiet, signal.SIGTERM):
        yield f"mysql://root@127.0.0.1:{port}/nava"
