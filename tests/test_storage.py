"""Files that are damaged, lost or somebody else's: nothing of it goes unnoticed or is removed."""

import hashlib
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import BAD_INPUT, HERE, ROOT, SMALL, changed_hdf5, checkpoints, run

from hpc_maml import open_run
from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.config import ArchiveConfig, load_config, to_yaml
from hpc_maml.errors import InputError
from hpc_maml.sampling.trajectory import batch_dtype
from hpc_maml.storage import checkpoint, meta_tests
from hpc_maml.storage.archive_plan import Shapes
from hpc_maml.storage.archive_schema import FIELDS
from hpc_maml.storage.archive_writer import RolloutArchive, SegmentWriter
from hpc_maml.storage.atomic_files import write_text
from hpc_maml.storage.hdf5_files import DamagedError
from hpc_maml.storage.inspection import damages
from hpc_maml.storage.metrics import METRICS, PART_ROWS, PER_TASK, Metrics
from hpc_maml.storage.reader import Run
from hpc_maml.storage.run_folder import begin, open_folder

CONFIG = load_config(None, [*SMALL, "archive.rollouts=every", "meta_batch_size=2"])
DTYPE = batch_dtype(12, 3, (2,), (2,), np.float32)
SHAPES = Shapes(DTYPE, 2, 0, adapted=False)
FILES = {
    "checkpoint": "checkpoints/iteration_000002.h5",
    "metrics": "metrics.h5",
    "part of metrics": f"metrics/iterations_000001_{PART_ROWS:06d}.h5",
    "evaluation": "evaluations/iteration_000002_tasks_40_updates_3.h5",
    "segment": "rollouts/iteration_000002/rank_0001.h5",
    "iteration": "rollouts/iteration_000002.h5",
    "index": "rollouts/index.h5",
}


def store_rollouts(folder: Path, iterations: int, archive: RolloutArchive | None = None) -> None:
    """Write what two observers would, until ``iterations`` are committed and one more is not."""
    archive = archive or RolloutArchive(folder, CONFIG, SHAPES, 0)
    chance = np.random.default_rng(1)
    for iteration in range(1, iterations + 2):
        segments = []
        for rank in (1, 2):
            writer = SegmentWriter(folder, ArchiveConfig(rollouts="every"), SHAPES, rank)
            for _ in range(2):
                batch = np.zeros(1, DTYPE)
                for name in ("observations", "actions", "rewards"):
                    batch[name] = chance.normal(size=batch[name].shape)
                batch["task"] = rank - 1
                writer.keep(iteration, batch, np.zeros(0))
            segments.append(writer.write())
        if iteration <= iterations:
            archive.commit(iteration, np.zeros((2, 1)), segments)
    archive.write_index()


def store(folder: Path) -> None:
    """Write a run folder with a file of every kind, without a run."""
    open_folder(folder, CONFIG).close()
    begin(folder, CONFIG)
    text = to_yaml(CONFIG, neutral=False)
    parameters = {f"weight_{n}": np.full((8, 8), n, np.float32) for n in range(3)}
    for done in (1, 2):
        found = checkpoint.Checkpoint(done, parameters, {"moment": np.arange(9.0)}, 9, 0)
        checkpoint.save(folder / "checkpoints", found, "fingerprint", text)
    metrics = Metrics(
        folder / "metrics.h5", {"python": "3"}, {"kl": Metric("nat", "KL")}, "updates"
    )
    row = dict.fromkeys((*METRICS, "kl"), 1) | {name: np.ones((2, 1)) for name in PER_TASK}
    for _ in range(2 * PART_ROWS):
        metrics.add(row)
        metrics.write(durable=False)
    returns = {"run": np.ones((40, 4)), "random": np.ones((40, 4))}
    test = meta_tests.MetaTest(2, "updates", np.ones((40, 2)), returns, {"best": np.ones(40)}, "x")
    meta_tests.save(folder / FILES["evaluation"], test)
    store_rollouts(folder / "rollouts", 3)
    assert damages(open_run(folder), verify=True) == []


@pytest.fixture
def stored() -> Path:
    """Return a run folder with a file of every kind."""
    store(Path("run"))
    return Path("run")


def flip(path: Path, place: int, bit: int = 0) -> bytes:
    """Flip a bit of a file, and return what it was; the file is a new one for every cache."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    put(path, bytes(changed))
    return content


def put(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    other.replace(path)


def fields(folder: Path) -> list[bytes]:
    """Return all of the segment of FILES, as the reader gives it."""
    rollout = open_run(folder).rollouts[2, 0]
    return [getattr(rollout, name).tobytes() for name in FIELDS]


READ: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda folder: open_run(folder).checkpoint(2),
    "metrics": lambda folder: open_run(folder).columns,
    "part of metrics": lambda folder: open_run(folder).columns,
    "evaluation": lambda folder: open_run(folder).evaluations,
    "iteration": lambda folder: open_run(folder).rollouts[2, 0],
}


def flip_bits(folder: Path, kind: str, number: int, chance: random.Random) -> list[str]:
    """Flip a bit in each of so many places of a file; return the flips that went unnoticed.

    Each must be damage in one sentence, and refused by those who read the file.
    """
    path = folder / FILES[kind]
    size = path.stat().st_size
    expected = fields(folder)
    unnoticed = []
    for k in range(number):
        place = min(size - 1, k * size // number + chance.randrange(max(1, size // number)))
        bit = chance.randrange(8)
        content = flip(path, place, bit)
        said = [str(each) for each in damages(open_run(folder), verify=True)]
        noticed = len(said) == 1 and said[0].startswith(f"{path} is damaged: ")
        try:
            if kind in READ:
                READ[kind](folder)
                noticed = False
            elif kind == "segment":  # of which only a part is read: right, or not at all
                noticed &= fields(folder) == expected
        except DamagedError:
            pass
        if not noticed:
            unnoticed.append(f"{kind}, byte {place} of {size}, bit {bit}: {said}")
        put(path, content)
    assert damages(open_run(folder), verify=True) == []
    return unnoticed


@pytest.mark.parametrize("number", [20, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FILES)
def test_every_flipped_bit_is_noticed(kind, number, stored):
    assert flip_bits(stored, kind, number, random.Random(kind)) == []


def test_iterations_that_will_be_computed_again_are_not_missed(stored):
    assert open_run(stored).rollouts.iterations == [1, 2, 3]
    RolloutArchive(stored / "rollouts", CONFIG, SHAPES, 2)
    assert open_run(stored).rollouts.iterations == [1, 2]
    assert damages(open_run(stored), verify=True) == []


def test_a_run_that_cannot_go_on_is_not_whole():
    run(HERE, *SMALL, "num_iterations=2", "--run-dir", "run")
    metrics, checkpoints = Path("run/metrics.h5"), Path("run/checkpoints")
    content = metrics.read_bytes()
    metrics.unlink()
    sentence = "run/metrics.h5 is missing"
    assert sentence in run(HERE, "inspect", "run", code=1).stderr
    assert sentence in run(HERE, "report", "run", code=BAD_INPUT).stderr
    metrics.write_bytes(content)
    for each in checkpoints.iterdir():
        each.unlink()
    sentence = "The checkpoints of the run in run are missing"
    assert sentence in run(HERE, "inspect", "run", code=1).stderr
    assert sentence in run(HERE, "evaluate", "run", code=BAD_INPUT).stderr


def test_what_a_run_removes_meanwhile_is_no_damage(stored, monkeypatch):
    read = Run.checkpoint

    def removed(run, iteration):
        (stored / f"checkpoints/iteration_{iteration:06d}.h5").unlink()
        return read(run, iteration)

    monkeypatch.setattr(Run, "checkpoint", removed)
    assert damages(open_run(stored), verify=False) == []


def test_the_checksum_can_be_compared_by_hand(stored):
    files = list(stored.rglob("*.h5"))
    assert len(files) == 2 + 2 + 1 + 2 * 4 + 3 + 1
    for path in files:
        content = path.read_bytes()
        words = content[:512].decode().rstrip()
        assert words == (
            "hpc_maml: SHA-256 of all that follows these 512 bytes: "
            + hashlib.sha256(content[512:]).hexdigest()
        )


def test_files_without_a_checksum_are_read_and_counted(stored):
    old = ROOT / "tests" / "data" / "run_format_1"
    shown = run(HERE, "inspect", old, "--verify")
    files = len(list(old.rglob("*.h5")))
    assert f"checksums   none in {files} of {files} files: an older program" in shown.stdout
    assert shown.stderr == ""
    assert "checksums" not in run(HERE, "inspect", old).stdout
    assert "checksums" not in run(HERE, "inspect", stored, "--verify").stdout


class TestDamage:
    """What a run and those who look at it do with a damaged file."""

    def test_a_run_goes_on_from_the_checkpoint_before(self, copied):
        before = checkpoints(copied)
        bad = copied / "checkpoints" / "iteration_000005.h5"
        flip(bad, len(before[bad.name]) // 2)
        test = run(HERE, "evaluate", copied, "--tasks", "2", "--updates", "1")
        assert test.stderr.count("\n") == 1
        assert f"{bad} is damaged: " in test.stderr
        assert "That of iteration 4 is used." in test.stderr
        assert "unseen tasks after 4 iterations" in test.stdout
        done = run(HERE, *SMALL, "archive.rollouts=every", "checkpoint.keep=9", "--run-dir", copied)
        assert "continued at 4" in done.stdout
        assert done.stdout.count("is damaged") == 1
        assert "It is kept as iteration_000005.h5.damaged." in done.stdout
        after = checkpoints(copied)
        assert after.pop("iteration_000005.h5.damaged") != before[bad.name]
        assert after == before

    def test_without_a_sound_checkpoint_it_does_not_begin_anew(self, copied):
        for path in (copied / "checkpoints").iterdir():
            flip(path, 3000)
        for words in ((*SMALL, "--run-dir", copied), ("evaluate", copied)):
            error = run(HERE, *words, code=BAD_INPUT).stderr
            assert "iteration_000005.h5 is damaged: its content does not match" in error
            assert "there is no earlier one to go on from." in error

    def test_damaged_metrics_end_a_run(self, copied):
        flip(copied / "metrics.h5", 9000)
        for words in ((*SMALL, "--run-dir", copied), ("report", copied, "-o", "out")):
            error = run(HERE, *words, code=BAD_INPUT).stderr
            assert f"{copied}/metrics.h5 is damaged: its content does not match" in error
            assert error.count("\n") == 1


class TestLoss:
    """What is not there is said, and what is there is kept."""

    def test_a_lost_iteration(self, stored):
        (stored / FILES["iteration"]).unlink()
        (found,) = damages(open_run(stored), verify=False)
        assert str(found) == f"{stored / FILES['iteration']} is missing."
        archive = RolloutArchive(stored / "rollouts", CONFIG, SHAPES, 3)
        assert archive.notes == [
            f"{stored / FILES['iteration']} is missing: its segments are left alone."
        ]
        assert len(list((stored / "rollouts/iteration_000002").iterdir())) == 2
        shutil.rmtree(stored / "rollouts/iteration_000002")  # now only the index knows of it
        (found,) = damages(open_run(stored), verify=False)
        assert str(found) == f"{stored / FILES['iteration']} is missing."

    @pytest.mark.parametrize("with_folder", [True, False])
    def test_lost_checkpoints(self, with_folder, copied):
        for path in (copied / "checkpoints").iterdir():
            path.unlink()
        if with_folder:
            (copied / "checkpoints").rmdir()
        before = {path: path.read_bytes() for path in copied.rglob("*.h5")}
        error = run(HERE, *SMALL, "--run-dir", copied, code=BAD_INPUT).stderr
        assert f"The checkpoints of the run in {copied} are missing: put them back into" in error
        assert before == {path: path.read_bytes() for path in copied.rglob("*.h5")}

    def test_a_lost_checkpoint_of_several(self, copied):
        before = checkpoints(copied)
        for done in (4, 5):
            (copied / "checkpoints" / f"iteration_{done:06d}.h5").unlink()
        done = run(HERE, *SMALL, "checkpoint.keep=9", "--run-dir", copied)
        assert (
            "The checkpoint of iteration 4 is missing: what came after iteration 3" in done.stdout
        )
        assert checkpoints(copied) == before


class TestOthers:
    """Files of others in a run folder, and links out of it."""

    def test_what_others_put_into_the_archive_is_left_alone(self, stored):
        rollouts = stored / "rollouts"
        outside = Path("outside")
        (outside / "deep").mkdir(parents=True)
        (outside / "deep" / "data").write_text("mine")
        (rollouts / "iteration_000007").symlink_to(outside.absolute())
        kept = [rollouts / name for name in ("iteration_analysis/a.txt", "iteration_000004/b.txt")]
        kept += [rollouts / "notes.partial", rollouts / "iteration_000002b.h5"]
        for path in kept:
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")
        own = rollouts / "iteration_000004" / "rank_0001.h5"
        other = own.with_name("rank_0007.h5")
        shutil.copy(own, other)  # which rank 7 did not write
        late = rollouts / "iteration_000005.h5"
        late.write_text("mine")
        archive = RolloutArchive(rollouts, CONFIG, SHAPES, 2)
        assert archive.notes == [
            f"{late} is damaged: it is kept as iteration_000005.h5.damaged.",
            f"{other} is damaged: it is kept as rank_0007.h5.damaged.",
        ]
        assert [path.read_text() for path in kept] == ["mine"] * 4
        assert (outside / "deep" / "data").read_text() == "mine"
        assert not own.exists()
        assert not (rollouts / "iteration_000003").exists()
        assert open_run(stored).rollouts.iterations == [1, 2]

    def test_checkpoints_of_another_run_are_not_pruned(self, stored):
        folder = stored / "checkpoints"
        found, _ = checkpoint.read(folder / "iteration_000002.h5")
        checkpoint.save(folder, found, "of another", "")
        checkpoint.save(folder, replace(found, iteration=3), "fingerprint", "")
        checkpoint.prune(folder, {3}, "fingerprint")
        assert list(checkpoint.checkpoints(folder)) == [2, 3]

    @pytest.mark.parametrize("name", ["rollouts", "checkpoints", "evaluations"])
    def test_a_folder_elsewhere_is_refused(self, name, stored):
        (stored / name).rename("elsewhere")
        (stored / name).symlink_to(Path("elsewhere").absolute())
        before = sorted(Path("elsewhere").rglob("*"))
        with pytest.raises(InputError, match=f"{name} is a symbolic link"):
            open_folder(stored, CONFIG)
        assert sorted(Path("elsewhere").rglob("*")) == before

    def test_links_are_not_followed(self, stored):
        target = Path("thesis.tex").absolute()
        target.write_text("years of work")
        links = [f"{name}.partial" for name in ("config.yaml", "metrics.h5")]
        links += [f"config.yaml.{8 * '0a'}.partial"]
        for link in links:
            (stored / link).symlink_to(target)
        begin(stored, CONFIG)
        assert all((stored / link).is_symlink() for link in links)
        (stored / ".lock").unlink()
        (stored / ".lock").symlink_to(target)
        with pytest.raises(InputError, match=r"\.lock is a symbolic link"):
            open_folder(stored, CONFIG)
        assert target.read_text() == "years of work"

    def test_a_lock_is_not_emptied(self, stored):
        (stored / ".lock").write_text("mine")
        open_folder(stored, CONFIG).close()
        assert (stored / ".lock").read_text() == "mine"


NAME = "iterations/kl"


def virtual(file):
    layout = h5py.VirtualLayout((2,), "f8")
    layout[...] = h5py.VirtualSource(".", NAME, (2,), "f8")
    file.create_virtual_dataset(NAME, layout)


def link(target):
    return lambda file: file.__setitem__(NAME, target)


def array(shape, kind="f8", **how):
    return lambda file: file.create_dataset(NAME, shape, kind, **how)


FOREIGN: dict[str, Callable[[h5py.File], object]] = {
    "kl is a link to elsewhere": link(h5py.SoftLink("/iterations/accepted")),
    "kl is a link to  elsewhere": link(h5py.ExternalLink("/etc/passwd", "/")),
    "kl is a group too deep": lambda file: file.create_group(f"{NAME}/deep"),
    "kl is not an array": link(np.dtype("f8")),
    "kl is stored in another file": virtual,
    "kl is stored in another  file": array((2,), external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
    "kl is not complete": array((10**12,), chunks=(1000,)),
    "kl is compressed": lambda file: file.create_dataset(
        NAME, data=np.zeros(10**7), chunks=(10**6,), compression="gzip"
    ),
    "kl holds no numbers": link(["a", "b"]),
}


@pytest.mark.parametrize("reason", FOREIGN)
def test_content_that_is_not_safe_to_read_is_damage(reason, stored):
    """With the right checksum, as somebody may have made it so."""
    path = stored / "metrics.h5"
    with changed_hdf5(path) as file:
        del file[NAME]
        FOREIGN[reason](file)
    with pytest.raises(DamagedError, match=" ".join(reason.split())):
        _ = open_run(stored).columns
    (said,) = run(HERE, "inspect", stored, code=1).stderr.splitlines()
    assert said.startswith(f"{path} is damaged: ")


@pytest.mark.parametrize("of", ["/", "returns/random"])
@pytest.mark.parametrize("phase", ["", "phases"])
def test_phases_of_no_known_kind_are_damage(of, phase, stored):
    with changed_hdf5(stored / FILES["evaluation"]) as file:
        file[of].attrs["phase"] = phase
    with pytest.raises(DamagedError, match=f"phases are updates or episode, not '{phase}'"):
        _ = open_run(stored).evaluations


class TestKills:
    """What a killed job left unfinished is finished or removed by the next."""

    def test_temporary_files(self, stored, monkeypatch):
        folders = {
            "": "metrics.h5",
            "checkpoints": "iteration_000003.h5",
            "evaluations": "iteration_000003_tasks_2_updates_1.h5",
            "rollouts": "index.h5",
            "rollouts/iteration_000001": "rank_0002.h5",
        }

        def killed(_path):
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr("hpc_maml.storage.atomic_files._sync", killed)
            patch.setattr(Path, "unlink", killed)
            for folder, name in folders.items():
                with pytest.raises(SystemExit):
                    write_text(stored / folder / name, "torn")
        left = list(stored.rglob("*.partial"))
        assert len(left) == len(folders)
        assert all(re.search(r"\.h5\.[0-9a-f]{16}\.partial$", path.name) for path in left)
        begin(stored, CONFIG)
        RolloutArchive(stored / "rollouts", CONFIG, SHAPES, 3)
        assert not list(stored.rglob("*.partial"))

    def test_an_iteration_that_was_being_removed(self, stored):
        rollouts = stored / "rollouts"
        (rollouts / "iteration_000001.h5").rename(rollouts / "iteration_000001.h5.thinned")
        (rollouts / "iteration_000001" / "rank_0001.h5").unlink()
        assert damages(open_run(stored), verify=True) == []
        assert RolloutArchive(rollouts, CONFIG, SHAPES, 3).notes == []
        assert not list(rollouts.glob("iteration_000001*"))
        assert damages(open_run(stored), verify=True) == []
