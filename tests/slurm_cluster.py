"""A real Slurm cluster on one machine: munge, slurmctld, and a slurmd for each of four nodes.

Every node is a network namespace of its own on one bridge, with its own host name and /dev/shm, so
that MPI libraries take the nodes for different hosts. Everything lives in namespaces, and ends with
them. Needs root and Debian's slurmctld, slurmd, slurm-client, munge and iproute2; by hand:

    python tests/slurm_cluster.py     # a shell on the login node
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "ip", "nsenter", "unshare", "setpriv")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
LOGIN, NODES = "login", ("n1", "n2", "n3", "n4")
DIE_WITH_ME = ("setpriv", "--pdeathsig", "KILL")  # even if the tests are killed
UNSHARE = ("unshare", "--net", "--uts", "--mount", "--ipc")
CPUS = 4  # of a node, whatever the machine has
# Each line was needed: the cluster is on one machine, without systemd, and tests cannot wait long.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost=login(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdTimeout=5
KillWait=5
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


def missing() -> str:
    """Return why no cluster can be started here, empty if one can."""
    if os.geteuid():
        return "starting slurmd and network namespaces takes root"
    if absent := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"no {', '.join(absent)} (apt-get install {' '.join(PACKAGES)})"
    probe = [*UNSHARE, "sh", "-ec", "mount --make-rprivate /; ip link add type veth"]
    answer = subprocess.run(
        probe, capture_output=True, text=True, check=False, env=os.environ | {"PATH": PATH}
    )
    return f"no network namespaces ({answer.stderr.strip()})" if answer.returncode else ""


class Cluster:
    """A running cluster; ``folder`` is shared by all nodes, like everything but /dev/shm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, subprocess.Popen] = {}  # the process that holds a host's namespaces
        self.daemons: dict[str, subprocess.Popen] = {}
        outside = {n: value for n, value in os.environ.items() if not n.startswith("SLURM")}
        self.environment = outside | {
            "PATH": f"{Path(sys.executable).parent}:{PATH}",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": str(Path(__file__).parent),  # classes in tests/ can be named
        }

    def start(self) -> None:
        """Start the hosts, then the daemons."""
        addresses = {
            name: f"10.77.0.{number}" for number, name in enumerate((LOGIN, *NODES), start=1)
        }
        hosts = "127.0.0.1 localhost\n" + "".join(
            f"{address} {name}\n" for name, address in addresses.items()
        )
        (self.folder / "hosts").write_text(hosts)
        nodes = "".join(
            f"NodeName={name} NodeAddr={addresses[name]} CPUs={CPUS} RealMemory=4000\n"
            for name in NODES
        )
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(folder=self.folder) + nodes)
        (self.folder / "state").mkdir()
        for name in NODES:
            (self.folder / f"tmp-{name}").mkdir()
            (self.folder / f"spool-{name}").mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))

        for name in (LOGIN, *NODES):
            self._start_host(name)
        self.on(LOGIN, "ip", "link", "add", "br0", "type", "bridge")
        self.on(LOGIN, "ip", "link", "set", "br0", "up")
        self.on(LOGIN, "ip", "address", "add", f"{addresses[LOGIN]}/24", "dev", "br0")
        for name in NODES:
            process = str(self.hosts[name].pid)
            self.on(
                *(LOGIN, "ip", "link", "add", f"to-{name}", "type", "veth"),
                *("peer", "name", "eth0", "netns", process),
            )
            self.on(LOGIN, "ip", "link", "set", f"to-{name}", "master", "br0", "up")
            self.on(name, "ip", "address", "add", f"{addresses[name]}/24", "dev", "eth0")
            self.on(name, "ip", "link", "set", "eth0", "up")

        munged = [
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid"),
            *(f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed"),
        ]
        self._start_daemon("munged", LOGIN, munged)
        self._start_daemon("slurmctld", LOGIN, ["slurmctld", "-D"])
        for name in NODES:
            self.start_node(name)

    def _start_host(self, name: str) -> None:
        """Hold a host's namespaces open, with its name, its /etc/hosts and its /dev/shm."""
        script = (
            f"hostname {name}; ip link set lo up; mount --make-rprivate /;"
            f"mount --bind {self.folder}/hosts /etc/hosts; mount -t tmpfs tmpfs /dev/shm;"
            "echo ready; exec sleep infinity"
        )
        host = subprocess.Popen(
            [*UNSHARE, *DIE_WITH_ME, "sh", "-ec", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=self.environment,
        )
        self.hosts[name] = host
        assert host.stdout.readline() == b"ready\n", f"host {name} did not start"

    def _start_daemon(self, daemon: str, host: str, command: Sequence[str]) -> None:
        self.daemons[daemon] = subprocess.Popen(
            self._enter(host, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / f"{daemon}.err").open("wb"),
            env=self.environment,
        )

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node and wait until Slurm counts on it."""
        self.on(LOGIN, "ip", "link", "set", f"to-{name}", "up")
        self._start_daemon(name, name, ["slurmd", "-D", "-N", name])
        self.wait_for(lambda: self._state_of(name) in ("idle", "mixed", "alloc"), f"node {name}")

    def lose_node(self, name: str) -> None:
        """Cut a node off and kill what runs there, as if its power had gone."""
        self.on(LOGIN, "ip", "link", "set", f"to-{name}", "down")
        namespace = Path(f"/proc/{self.hosts[name].pid}/ns/net").readlink()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                same = (process / "ns/net").readlink() == namespace
                if same and int(process.name) != self.hosts[name].pid:
                    os.kill(int(process.name), signal.SIGKILL)
        self.daemons.pop(name).wait()

    def _state_of(self, name: str) -> str:
        return self.on(LOGIN, "sinfo", "-h", "-n", name, "-o", "%T", check=False).strip()

    def _enter(self, host: str, command: Sequence[str]) -> list[str]:
        namespaces = ["nsenter", *UNSHARE[1:]]
        where = [f"--target={self.hosts[host].pid}", f"--wd={Path.cwd()}"]
        return [*namespaces, *where, *DIE_WITH_ME, *command]

    def on(self, host: str, *command: str, check: bool = True, **variables: str) -> str:
        """Run a command on a host and return what it prints."""
        answer = subprocess.run(
            self._enter(host, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=self.environment | variables,
        )
        assert not (check and answer.returncode), f"{command}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def submit(self, *words: str, **variables: str) -> str:
        """Submit a job with the words of an sbatch command and return its number."""
        return self.on(LOGIN, "sbatch", "--parsable", *words, **variables).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm knows of a job, by the names of ``scontrol show job``."""
        shown = self.on(LOGIN, "scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def state(self, number: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self.job(number)["JobState"]

    def wait_for(self, ready, what: str, limit: float = 120) -> None:
        """Wait until ``ready()`` is true."""
        deadline = time.monotonic() + limit
        while not ready():
            assert time.monotonic() < deadline, f"waited {limit} s for {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """Return the last lines of every daemon's log."""
        texts = []
        for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.err")]):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            texts.append("\n".join([f"== {path.name}", *lines]))
        return "\n".join(texts)

    def stop(self) -> None:
        """End every process of the cluster, and with them its namespaces."""
        namespaces = set()
        for host in self.hosts.values():
            with contextlib.suppress(OSError):
                namespaces.add(Path(f"/proc/{host.pid}/ns/net").readlink())
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "ns/net").readlink() in namespaces:
                    os.kill(int(process.name), signal.SIGKILL)
        for child in (*self.daemons.values(), *self.hosts.values()):
            child.wait()


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster, and end it."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        cluster = Cluster(Path(name))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def main() -> None:
    """Start a cluster and a shell on its login node."""
    if reason := missing():
        sys.exit(f"no Slurm cluster can be started here: {reason}")
    with running_cluster() as cluster:
        shell = cluster._enter(LOGIN, sys.argv[1:] or [os.environ.get("SHELL", "sh")])
        subprocess.run(shell, env=cluster.environment, check=False)


if __name__ == "__main__":
    main()
