"""Checkpoints are there whole or not at all."""

import errno

import pytest
import torch

from nava_lab.training import saved

STATE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "list": [1, {"deep": torch.ones(2)}],
    "none": None,
    "words": {"x": "y"},
    "empty": {},
}


def test_nested_state_is_parted_from_its_tensors_and_joined_again():
    rest, tensors = saved.parted(STATE)
    assert set(tensors) == {("a",), ("list", 1, "deep")}
    assert rest["a"] is None
    joined = saved.joined(rest, tensors)
    assert torch.equal(joined["list"][1]["deep"], STATE["list"][1]["deep"])
    assert {key: joined[key] for key in ("none", "words", "empty")} == {key: STATE[key] for key in ("none", "words", "empty")}


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "0000001.ckpt"
    saved.write_whole(path, lambda file: torch.save({"step": 1}, file))

    def broken(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saved.write_whole(path, broken)
    assert saved.whole(path) == {"step": 1}
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_told_as_one(tmp_path):
    """The device /dev/full takes nothing, as a full disk does."""
    path = tmp_path / "0000001.ckpt"
    saved.unfinished(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"full|space") as caught:
        saved.write_whole(path, lambda file: torch.save({"weights": torch.zeros(100_000)}, file))
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_the_newest_whole_one_is_found_and_what_kills_left_is_cleared(tmp_path):
    for step in (1, 2, 3):
        saved.write_whole(
            tmp_path / f"{step:07d}.ckpt", lambda file, step=step: torch.save({"weights": torch.ones(999) * step}, file)
        )
    newest = tmp_path / "0000003.ckpt"
    newest.write_bytes(newest.read_bytes()[:2000])
    (tmp_path / ".0000004.ckpt.tmp").write_bytes(b"begun")
    (tmp_path / ".0000005.ckpt.tmp").mkdir()
    (tmp_path / "0000006.ckpt").mkdir()  # a folder without its last file
    told = []
    assert saved.newest_checkpoint(tmp_path, told.append).name == "0000002.ckpt"
    assert [line.split(" cannot be read")[0] for line in told] == [str(tmp_path / "0000006.ckpt"), str(newest)]
    saved.clear(tmp_path)
    assert not list(tmp_path.glob(".*"))
    saved.remove(tmp_path / "0000006.ckpt")
    saved.remove(newest)
    assert [path.name for path in saved.numbered(tmp_path)] == ["0000002.ckpt", "0000001.ckpt"]


def test_what_is_newer_than_the_start_is_never_continued_from(tmp_path):
    """Removed where it can be read, kept by another name where it cannot: it may be whole, and the disk was away."""
    for step in (1, 2, 3, 4):
        saved.write_whole(tmp_path / f"{step:07d}.ckpt", lambda file, step=step: torch.save({"step": step}, file))
    torn = tmp_path / "0000003.ckpt"
    bytes_of_it = torn.read_bytes()
    torn.write_bytes(bytes_of_it[:100])
    told = []
    saved.give_up(tmp_path, 2, told.append)
    assert [path.name for path in saved.numbered(tmp_path)] == ["0000002.ckpt", "0000001.ckpt"]
    assert (tmp_path / "unread-0000003.ckpt").read_bytes() == bytes_of_it[:100]
    assert "0000004.ckpt is given up: the training goes on from step 2" in told[0]
    assert "0000003.ckpt cannot be read" in told[1]
    assert "kept as unread-0000003.ckpt" in told[1]
