"""A PostgreSQL server of the tests' own, in a folder of theirs; skips where PostgreSQL is not installed."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest


def _program(name):
    places = [shutil.which(name), *sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), reverse=True)]
    return next((place for place in places if place and Path(place).exists()), None)


@contextmanager
def postgresql(folder):
    """The URL of a fresh, empty database."""
    initdb, server = _program("initdb"), _program("postgres")
    if not initdb or not server:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'nava-lab[postgresql]'")
    as_user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        import pwd

        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        place = Path(os.path.realpath(subprocess.check_output(["mktemp", "-d", "/tmp/nava-pg-XXXXXX"], text=True).strip()))
        os.chown(place, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    else:
        place = Path(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = place / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **as_user}
    subprocess.run([initdb, "-D", data, "-U", "nava", "-A", "trust", "--no-sync"], check=True, timeout=120, **quiet)
    settings = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={place}", "-p", str(port)]
    process = subprocess.Popen([server, "-D", data, *settings], **quiet)
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
        yield f"postgresql://nava@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # does not wait for clients to leave
        process.wait(30)
        if as_user:
            shutil.rmtree(place, ignore_errors=True)
