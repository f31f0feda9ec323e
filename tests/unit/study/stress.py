"""A worker of the claims test: does slots of a study until none is left, writing down whatever it does, and may be killed.

Usage: ``python stress.py STORAGE FOLDER SLOTS LEASE_S``. Each finished slot leaves one line in FOLDER/done, each begun one in
FOLDER/begun (with the worker's process id).
"""

import os
import sys
import time
from pathlib import Path

import optuna

from nava_lab.study.claims import Board
from nava_lab.study.storage import open_storage

storage, folder, count, lease = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])


def write(name, line):
    with (folder / name).open("a") as file:
        file.write(f"{line}\n")


study = optuna.create_study(storage=open_storage(storage), study_name="stress", load_if_exists=True)
board = Board(study, folder / f"lock-{os.getpid()}", lease)  # no lock in common, as on machines without a file system in common
names = [f"slot {number}" for number in range(count)]
while True:
    board.give_up_dead()
    board.add({name: {} for name in names})
    claim = board.claim(names)
    if claim is None:
        if all(slot.state == "finished" for slot in board.slots().values()):
            break
        time.sleep(0.02)
        continue
    with claim:
        write("begun", f"{claim.slot},{os.getpid()}")
        claim.trial.suggest_float("x", 0, 1)
        time.sleep(0.15)
        if claim.finish([1.0]):
            write("done", claim.slot)
