"""Run checkpoints: damaged ones are detected and moved aside, and saving continues."""

import resource
import shutil

import pytest
from tiny_checkpoints import ABSTRACT, is_as_saved, make_state, write_checkpoints

from spirit_jax import InputError
from spirit_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run" / "checkpoints"
    write_checkpoints(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run" / "checkpoints")


def damage(folder, name="state/manifest.ocdbt"):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # a checksum may end with any byte


@pytest.mark.compat
def test_a_damaged_newest_checkpoint_is_moved_aside_and_its_step_saved_again(folder, capfd):
    damage(folder / "6")
    checkpoints = Checkpoints(folder, keep=5)
    restored = checkpoints.restore(ABSTRACT)
    assert restored.step == 4 and is_as_saved(restored)
    message = capfd.readouterr().err
    assert "checkpoint 6" in message and "checkpoint 4 is used" in message
    assert (folder / "damaged" / "6" / "state" / "manifest.ocdbt").is_file()
    checkpoints.save(make_state(6), {"stream": {"step": 6}})
    checkpoints.close()
    assert Checkpoints(folder).restore(ABSTRACT).step == 6
    damage(folder / "6")
    Checkpoints(folder, keep=5).restore(ABSTRACT)
    assert {path.name for path in (folder / "damaged").iterdir()} == {"6", "6-2"}


def test_every_flipped_bit_is_detected(folder):
    """A newest checkpoint with any change is not used."""
    paths = [path for path in (folder / "6").rglob("*") if path.is_file()]
    for path in paths:
        data = path.read_bytes()
        for place in {0, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            assert Checkpoints(folder).restore(ABSTRACT).step == 4, (path, place)
        path.unlink()
        if path.parent.name != "checksums":  # earlier versions wrote no checksums
            assert Checkpoints(folder).restore(ABSTRACT).step == 4, path
        path.write_bytes(data)
    assert Checkpoints(folder).restore(ABSTRACT).step == 6


def test_a_damaged_older_checkpoint_does_not_stop_saving(folder):
    (folder / "2" / "_CHECKPOINT_METADATA").write_text('{"metrics": 3}')
    checkpoints = Checkpoints(folder, keep=5)
    assert checkpoints.restore(ABSTRACT).step == 6
    checkpoints.save(make_state(8), {"stream": {"step": 8}})
    checkpoints.close()
    assert Checkpoints(folder).steps() == [8, 6, 4]


def test_a_half_deleted_checkpoint_is_deleted_silently(folder, capfd):
    (folder / "2" / "_CHECKPOINT_METADATA").unlink()  # killed while Orbax deleted it
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.restore(ABSTRACT).step == 6
    checkpoints.save(make_state(8), {"stream": {"step": 8}})
    checkpoints.close()
    assert Checkpoints(folder).steps() == [8, 6] and not (folder / "damaged").exists()
    assert capfd.readouterr() == ("", "")


def test_nothing_is_moved_if_no_checkpoint_can_be_read(folder):
    for step in "246":
        damage(folder / step)
    with pytest.raises(InputError, match="none of its 3 checkpoints can be read"):
        Checkpoints(folder, keep=5).restore(ABSTRACT)
    assert Checkpoints(folder).steps() == [6, 4, 2]


def test_too_many_open_files_are_not_reported_as_damage(folder):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as lowest_free:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free.fileno(), limits[1]))
        try:
            with pytest.raises(InputError, match="too many files are open"):
                Checkpoints(folder, keep=5).restore(ABSTRACT)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert Checkpoints(folder).restore(ABSTRACT).step == 6


@pytest.mark.compat
def test_a_different_network_is_rejected_and_nothing_is_moved(folder):
    other = ABSTRACT.replace(params=ABSTRACT.params | {"more": ABSTRACT.step})
    with pytest.raises(InputError, match="'params/more' is absent in the checkpoint and int32"):
        Checkpoints(folder, keep=5).restore(other)
    assert Checkpoints(folder).steps() == [6, 4, 2]


def test_a_checkpoint_without_checksums_is_read(folder):
    shutil.rmtree(folder / "6" / "checksums")
    assert Checkpoints(folder).restore(ABSTRACT).step == 6


def test_reading_does_not_change_the_folder(folder):
    damage(folder / "6")
    (folder / "8.orbax-checkpoint-tmp").mkdir()
    before = sorted(folder.rglob("*"))
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore(ABSTRACT).step == 4
    checkpoints.close()
    assert sorted(folder.rglob("*")) == before


def test_a_full_disk_is_reported_without_a_traceback(folder, capfd):
    checkpoints = Checkpoints(folder, keep=5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written .*resumes from checkpoint 6"):
            checkpoints.save(make_state(8), {"stream": {"step": 8}})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in capfd.readouterr().err
    assert not list(folder.glob("*orbax-checkpoint-tmp*")) and Checkpoints(folder).steps()[0] == 6
    again = Checkpoints(folder, keep=5)
    again.save(make_state(8), {"stream": {"step": 8}})
    again.close()
    assert Checkpoints(folder).restore(ABSTRACT).step == 8


def test_a_deleted_run_folder_is_reported(folder):
    checkpoints = Checkpoints(folder, keep=5)
    assert checkpoints.restore(ABSTRACT).step == 6
    shutil.rmtree(folder.parent)
    folder.parent.write_text("in the way")
    with pytest.raises(InputError, match="the run folder is gone"):
        checkpoints.save(make_state(8), {"stream": {"step": 8}})
