"""The job scripts on a real Slurm cluster of four nodes, and what may happen to a job there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HERE, ROOT, SMALL, run
from paced import PACE
from slurm_cluster import LOGIN, Cluster, missing, running_cluster
from test_restart import state

# Slurm takes its time, and one cluster is enough for a machine.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
# Of two phases an iteration: at its pace, a job lasts long enough to be disturbed.
SETTINGS = (*SMALL, "env.name=paced:PacedNavigation", "num_iterations=40", "checkpoint.keep=99")
SETTINGS += ("checkpoint.every=5",)
OVER_FOUR_NODES = ("--nodes=4", "--ntasks=8", "--ntasks-per-node=2")
LONG = 300  # iterations, two minutes at their pace: Slurm looks at time limits every 30 s
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"NOT TESTED ON SLURM: {reason}")
    with running_cluster() as started:
        yield started


@pytest.fixture(autouse=True)
def _checkout() -> None:
    """Let the folder of the test look like a checkout."""
    for folder in ("jobs", "configs"):
        Path(folder).symlink_to(ROOT / folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """Return the state of the run by ``python -m hpc_maml`` alone."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(HERE, *SETTINGS, f"num_iterations={LONG}", "--run-dir", str(folder))
    return state(folder)


def log(name: str) -> str:
    return Path(name).read_text(errors="replace") if Path(name).exists() else ""


def wait_for_end(cluster: Cluster, job: str, log_file: str, limit: float = 180) -> dict[str, str]:
    """Wait until a job has ended and return what Slurm knows of it."""
    try:
        cluster.wait_for(lambda: cluster.state(job) in ENDED, f"job {job} to end", limit)
    except AssertionError as error:
        pytest.fail(f"{error}\n{cluster.job(job)}\n{log(log_file)}")
    return cluster.job(job)


def wait_for_checkpoint(cluster: Cluster, folder: str, iteration: int) -> None:
    path = Path(folder) / "checkpoints" / f"iteration_{iteration:06d}.h5"
    cluster.wait_for(path.exists, f"{path}")


def begins(undisturbed: dict[str, bytes], folder: str, iterations: int) -> bool:
    """Tell whether a run is, bit by bit, the beginning of the undisturbed one."""
    left = state(Path(folder))
    assert f"iteration_{iterations:06d}.h5" in left
    # a job that was stopped also has a checkpoint of the iteration it stopped at
    known = undisturbed.keys() & left.keys()
    assert len(known) >= len(left) - 1
    return all(undisturbed[name].startswith(left[name]) for name in known)


@pytest.mark.parametrize("launcher", ["", "mpirun -np 8"])
def test_a_job_over_four_nodes(launcher, cluster, undisturbed):
    words = ("--config", "configs/ant_dir.yaml", *SETTINGS, "num_iterations=5")
    script = "jobs/slurm_ant.sh"
    job = cluster.submit(*OVER_FOUR_NODES, script, *words, LAUNCHER=launcher)
    ended = wait_for_end(cluster, job, f"ant-{job}.log")
    text = log(f"ant-{job}.log")
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), text
    assert f"job {job}, start 1: {launcher or 'srun'}" in text
    first, agent = r"0 +principal \+ agent \+ observer +n1", r"agent \+ observer"
    for line in (first, rf"2 +{agent} +n2", rf"4 +{agent} +n3", rf"6 +{agent} +n4"):
        assert re.search(f"^{line} ", text, re.MULTILINE), text
    folder = f"runs/ant-{job}"
    assert {path.name for path in Path(folder).iterdir()} >= {
        "config.yaml",
        "metrics.h5",
        "checkpoints",
    }
    assert begins(undisturbed, folder, 5)


def test_teams_are_formed_node_by_node(cluster):
    code = (
        "from mpi4py import MPI; from hpc_maml.mpi.topology import build_topology;"
        "t = build_topology(MPI.COMM_WORLD, 3, 'split', 60);"
        "print(t.hosts[t.world.rank], *t.place.roles, t.team_comm and t.team_comm.bcast("
        "t.hosts[t.world.rank]))"
    )
    shown = cluster.on(LOGIN, "srun", "--mpi=pmi2", "-N4", "-n12", "python", "-c", code)
    lines = [line.split() for line in shown.splitlines() if len(line.split()) == 3]
    assert [line[1] for line in lines].count("agent") == 3
    agents_on = {line[0] for line in lines if line[1] == "agent"}
    assert len(agents_on) == 3
    observers = [(host, host_of_agent) for host, role, host_of_agent in lines if role == "observer"]
    assert len(observers) == 8
    for host, host_of_agent in observers:
        assert host_of_agent == host or host not in agents_on


def test_doctor_in_an_allocation(cluster):
    words = ("srun", "--mpi=pmi2", "-N4", "-n8", "python", "-m", "hpc_maml", "doctor", "device=cpu")
    shown = cluster.on(LOGIN, *words)
    assert re.search(r"^ok +launcher +8 ranks in one world$", shown, re.MULTILINE), shown
    assert re.search(r"^ok +ranks +n1: .*; n2: .*; n3: .*; n4: ", shown, re.MULTILINE), shown
    assert re.search(r"^ok +Slurm +job_id \d+, .*ntasks 8", shown, re.MULTILINE), shown


def test_a_launcher_of_another_mpi_is_said(cluster):
    job = cluster.submit("-n2", "jobs/slurm_half_cheetah.sh", *SMALL, LAUNCHER="srun --mpi=none")
    ended = wait_for_end(cluster, job, f"half_cheetah-{job}.log")
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "No launcher makes one world of the 2 tasks" in log(f"half_cheetah-{job}.log")
    assert not Path("runs").exists()


def test_sweep(cluster):
    words = (*SMALL, "env.name=navigation", "num_iterations=1")
    sweep = {"KEY": "algorithm.max_kl", "VALUES": "0.01 0.02", "SEEDS": "1 5"}
    script = "jobs/slurm_sweep.sh"
    wrong = cluster.submit("--array=0-1", "-n1", script, *words, **sweep)
    job = cluster.submit("--array=0-3", "-n1", script, *words, **sweep)
    for task in range(4):
        name = f"sweep-{job}_{task}.log"
        assert wait_for_end(cluster, f"{job}_{task}", name)["JobState"] == "COMPLETED", log(name)
    for max_kl in (0.01, 0.02):
        for seed in (1, 5):
            folder = Path(f"runs/sweep-{job}/algorithm.max_kl={max_kl}-seed={seed}")
            config = (folder / "config.yaml").read_text()
            assert f"seed: {seed}\n" in config
            assert f"max_kl: {max_kl}\n" in config
            assert (folder / "checkpoints/iteration_000001.h5").exists()
    assert wait_for_end(cluster, f"{wrong}_0", "")["ExitCode"] == "2:0"
    assert "are 4 runs: sbatch --array=0-3" in log(f"sweep-{wrong}_0.log")


def test_evaluate(cluster):
    run(HERE, *SMALL, "num_iterations=1", "--run-dir", "run")
    words = ("evaluate", "run", "--tasks", "3", "--updates", "1", "--json")
    run(HERE, *words, "serial.json")
    # an agent whose only observer is on another node
    job = cluster.submit("-N2", "-n3", "jobs/slurm_evaluate.sh", *words[1:], "slurm.json")
    name = f"evaluate-{job}.log"
    assert wait_for_end(cluster, job, name)["JobState"] == "COMPLETED", log(name)
    assert json.loads(log("slurm.json")) == json.loads(log("serial.json"))


def test_a_heterogeneous_job_is_one_world(cluster, undisturbed):
    words = (*SETTINGS, "num_iterations=5")
    job = cluster.submit(
        *("--nodes=1", "--ntasks=3", "--gres=none", ":", "--nodes=2", "--ntasks=4", "--gres=none"),
        *("jobs/slurm_gpu.sh", *words),
    )
    name = f"gpu-{job}.log"
    assert wait_for_end(cluster, job, name)["JobState"] == "COMPLETED", log(name)
    assert re.search(r"^[\d,-]+ +observer +n3 ", log(name), re.MULTILINE), log(name)
    assert begins(undisturbed, f"runs/gpu-{job}", 5)


class TestPreemption:
    """Whatever ends a job early, it goes on from its own run folder, and nobody can tell later."""

    @pytest.fixture(autouse=True)
    def _pace(self) -> None:
        """Slow jobs down until they have been disturbed."""
        PACE.touch()

    @pytest.fixture
    def job(self, cluster) -> str:
        words = ("--config", "configs/navigation.yaml", *SETTINGS)
        job = cluster.submit(
            *("--time=10", *OVER_FOUR_NODES, "jobs/slurm_ant.sh", *words), REQUEUE="yes"
        )
        wait_for_checkpoint(cluster, f"runs/ant-{job}", 5)
        return job

    def wait_for_restart(self, cluster, job) -> None:
        def restarted() -> bool:
            now = cluster.job(job)
            assert now["JobState"] not in ENDED, f"{now}\n{log(f'ant-{job}.log')}"
            return now["Restarts"] != "0"

        cluster.wait_for(restarted, f"job {job} to be queued again", 120)

    def goes_on(self, cluster, job, undisturbed, iterations=40) -> str:
        """Check how a disturbed job ends, at its own pace, and return its log."""
        PACE.unlink()
        ended = wait_for_end(cluster, job, f"ant-{job}.log")
        text = log(f"ant-{job}.log")
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), text
        assert int(ended["Restarts"]) >= 1
        assert f"job {job}, start 2: srun" in text
        if "stopped early after 0 iterations" not in text:  # slow to start
            assert f"run folder runs/ant-{job}, continued at " in text
        assert begins(undisturbed, f"runs/ant-{job}", iterations)
        return text

    def test_the_time_limit_is_near(self, cluster, undisturbed):
        words = ("--config", "configs/navigation.yaml", *SETTINGS, f"num_iterations={LONG}")
        job = cluster.submit(
            # Slurm warns at its first look, as it may be up to a minute early
            *("--time=1", "--signal=B:USR1@30", *OVER_FOUR_NODES, "jobs/slurm_ant.sh", *words),
            REQUEUE="yes",
        )
        self.wait_for_restart(cluster, job)
        cluster.on(LOGIN, "scontrol", "update", f"JobId={job}", "TimeLimit=10")
        text = self.goes_on(cluster, job, undisturbed, LONG)
        assert "stopped early after " in text, text

    def test_a_warned_task_of_an_array_is_queued_again_alone(self, cluster):
        words = ("--config", "configs/navigation.yaml", *SETTINGS)
        sweep = {"KEY": "algorithm.max_kl", "VALUES": "0.01 0.02", "SEEDS": "1", "REQUEUE": "yes"}
        job = cluster.submit("--array=0-1", "-n1", "jobs/slurm_sweep.sh", *words, **sweep)
        folders = [f"runs/sweep-{job}/algorithm.max_kl={max_kl}-seed=1" for max_kl in (0.01, 0.02)]
        for folder in folders:
            wait_for_checkpoint(cluster, folder, 5)
        cluster.on(LOGIN, "scancel", "--batch", "--signal=USR1", f"{job}_1")
        ends = "stopped early after "
        cluster.wait_for(lambda: ends in log(f"sweep-{job}_1.log"), "task 1 to stop", 120)
        PACE.unlink()
        for task, restarts in enumerate(("0", "1")):
            name = f"sweep-{job}_{task}.log"
            ended = wait_for_end(cluster, f"{job}_{task}", name)
            assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", restarts), log(name)
        assert ends not in log(f"sweep-{job}_0.log")

    def test_scancel_signal(self, cluster, job, undisturbed):
        cluster.on(LOGIN, "scancel", "--batch", "--signal=USR1", job)
        assert "stopped early after " in self.goes_on(cluster, job, undisturbed)

    def test_scontrol_requeue(self, cluster, job, undisturbed):
        cluster.on(LOGIN, "scontrol", "requeue", job)
        self.goes_on(cluster, job, undisturbed)

    def test_a_node_is_taken_away(self, cluster, job, undisturbed):
        cluster.lose_node("n3")
        self.wait_for_restart(cluster, job)
        cluster.start_node("n3")
        self.goes_on(cluster, job, undisturbed)

    @pytest.mark.parametrize("words", [["--signal=USR1"], []], ids=["signal", "cancel"])
    def test_a_job_that_is_cancelled_does_not_start_again(self, words, cluster, job, undisturbed):
        cluster.on(LOGIN, "scancel", *words, job)
        PACE.unlink()
        ended = wait_for_end(cluster, job, f"ant-{job}.log")
        assert ended["Restarts"] == "0"
        assert ended["JobState"] == ("FAILED" if words else "CANCELLED")
        if words:
            assert ended["ExitCode"] == "75:0"
        text = log(f"ant-{job}.log")
        (done,) = re.findall(r"stopped early after (\d+) iterations, with a checkpoint", text)
        folder = f"runs/ant-{job}"
        assert f"iteration_{int(done):06d}.h5" in state(Path(folder))
        again = cluster.submit(
            *("-n3", "jobs/slurm_ant.sh", "--config", "configs/navigation.yaml", *SETTINGS),
            *("--run-dir", folder),
        )
        assert wait_for_end(cluster, again, f"ant-{again}.log")["JobState"] == "COMPLETED"
        assert begins(undisturbed, folder, 40)


def test_an_experiment_is_an_array(cluster):
    Path("tiny.yaml").write_text(
        json.dumps(
            {
                "title": "Tiny",
                "about": "A table.",
                "seeds": 2,
                "chunk": 2,
                "methods": {
                    "maml": {
                        "config": "navigation",
                        "settings": [*SMALL, "archive.rollouts=none"],
                        "iterations": 4,
                        "test": {"tasks": 3},
                        "published": {"source": "nobody", "scores": {"after_1": -1000.0}},
                    }
                },
            }
        )
    )
    words = ("python", "-m", "hpc_maml", "reproduce", "tiny.yaml")
    said = cluster.on(LOGIN, *words, "--slurm", "--ntasks=2", "--time=10")
    job = re.search(r"Submitted batch job (\d+)", said)[1]
    for task in range(2):
        name = f"reproduce-{job}_{task}.log"
        assert wait_for_end(cluster, f"{job}_{task}", name)["JobState"] == "COMPLETED", log(name)
        assert re.search(r"^1 +observer ", log(name), re.MULTILINE), log(name)
    said = cluster.on(LOGIN, *words)
    assert said.splitlines() == ["tiny: 2 runs in reproduced/tiny", "reproduced/tiny.md"]
    assert "| 2 of 2 | **reached** |" in Path("reproduced/tiny.md").read_text()
    assert "all runs are finished" in cluster.on(LOGIN, *words, "--slurm")
