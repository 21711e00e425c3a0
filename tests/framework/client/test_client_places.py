"""Places for results are tried before the work, and nothing is left behind."""

import errno
import os
import pathlib

import pytest

from openpi_client import places


@pytest.mark.parametrize("name", ["", "made", "made/deeper", "with space/x"])
def test_a_place_that_can_be_written_has_no_problem_and_stays_as_it_is(tmp_path, name):
    assert places.problem(tmp_path / name) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "link", "link/below"])
def test_what_is_in_the_way_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    found = places.problem(tmp_path / name)
    assert found == f"{tmp_path / name.split('/')[0]} is not a folder"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_that_takes_no_files_is_found():
    assert places.problem(pathlib.Path("/proc/none/below"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_the_file_but_not_its_content_is_found(tmp_path, monkeypatch, number):
    def refuse(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert places.problem(tmp_path) == os.strerror(number)
    assert list(tmp_path.iterdir()) == []
