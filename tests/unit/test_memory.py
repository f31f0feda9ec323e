"""The allocator keeps pages between steps, and leaves alone who has set it up otherwise."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from nava_lab.memory import keep_memory
if len(sys.argv) > 1:
    print(keep_memory())
def step():
    held = [bytearray(20 * 2**20) for _ in range(3)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    made = subprocess.run([sys.executable, "-c", FAULTS, *arguments], capture_output=True, text=True, env=clean | environment)
    assert made.returncode == 0, made.stderr
    return made.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_stay_between_steps():
    taken, kept = faults("keep")
    if taken == "False":
        pytest.skip("this system's allocator takes no settings")
    (plain,) = faults()
    assert int(kept) < 0.1 * int(plain)


def test_settings_of_the_user_stand():
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="1000")[0] == "False"
    assert faults("keep", GLIBC_TUNABLES="glibc.malloc.tcache_count=7")[0] == "False"
