"""A real Slurm on hosts of `hosts`: a controller, a node daemon on each node, and munge, ended with the block."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hosts import Host, Running

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
CONFIG = """\
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool_%n
SlurmctldLogFile={directory}/controller.log
SlurmdLogFile={directory}/%n.log
SlurmctldPidFile={directory}/controller.pid
SlurmdPidFile={directory}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
JobRequeue=1
MinJobAge=3600
KillWait=30
MailProg=/bin/true
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=60
"""


@dataclass(frozen=True)
class Slurm:
    """Slurm as one sees it from a host that submits jobs."""

    configuration: Path
    client: Host
    nodes: Sequence[Host]

    def __call__(self, *words: object) -> str:
        """What a command of Slurm prints; raises where it fails."""
        done = self.client.run(*words, environment={"SLURM_CONF": str(self.configuration)}, timeout=120)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def submit(self, *words: object, **environment: str) -> int:
        """The number of a submitted batch job."""
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in environment.items())])
        return int(self("sbatch", "--parsable", f"--export={exported}", *words))

    def states(self, job: int) -> list[str]:
        """The state of a job, one for each task of an array."""
        return [field[9:] for field in self("scontrol", "show", "job", job).split() if field.startswith("JobState=")]

    def jobs_leave_nothing(self) -> bool:
        """Whether, within seconds, no node has a process but its daemon and munge."""
        deadline = time.monotonic() + 30
        while left := [pid for node in self.nodes for pid in node.pids() if not _is_daemon(pid)]:
            if time.monotonic() > deadline:
                print(left)
                return False
            time.sleep(0.3)
        return True

    def wait(self, job: int, seconds: float) -> list[str]:
        """The states in which a job ended; raises TimeoutError where it has not by then."""
        deadline = time.monotonic() + seconds
        while not set(states := self.states(job)) <= set(OVER):
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job}: {states} after {seconds} s\n{self('squeue')}")
            time.sleep(0.3)
        return states


def why_no_slurm() -> str | None:
    """Why there can be no Slurm here, or None."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    return f"no {', '.join(missing)}: apt-get install slurm-wlm munge" if missing else None


@contextmanager
def slurm(directory: Path, controller: Host, nodes: Sequence[Host]) -> Iterator[Slurm]:
    """Slurm for the block, its files in `directory`; `controller` is where jobs are submitted, too."""
    (directory / "state").mkdir()
    for node in nodes:
        (directory / f"spool_{node.name}").mkdir()
    configuration = directory / "slurm.conf"
    lines = [f"NodeName={node.name} NodeAddr={node.address} CPUs=1 RealMemory=4000" for node in nodes]
    text = CONFIG.format(directory=directory, controller=f"{controller.name}({controller.address})")
    configuration.write_text(text.replace("PartitionName", "\n".join([*lines, "PartitionName"])))
    daemons = []
    try:
        daemons.append(_munge(directory, controller))
        daemons.append(controller.start("slurmctld", "-D", "-f", configuration, stdout=subprocess.DEVNULL))
        daemons += [
            node.start("slurmd", "-D", "-f", configuration, "-N", node.name, stdout=subprocess.DEVNULL)
            for node in nodes
        ]
        ready = Slurm(configuration, controller, nodes)
        _wait_for_nodes(ready, len(nodes))
        yield ready
        with contextlib.suppress(AssertionError):
            ready("scancel", "--user=root")  # ends what still runs, with its steps
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def _is_daemon(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() in ("slurmd", "slurmstepd", "munged", "sh")
    return True  # it is gone


def _munge(directory: Path, host: Host) -> Running:
    """A munge daemon of its own: its socket is a file, so that it serves every host."""
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"key-file": key, "socket": directory / "munge.socket"}
    files |= {name: directory / f"munge.{name}" for name in ("pid-file", "log-file", "seed-file")}
    words = [f"--{name}={path}" for name, path in files.items()]
    return host.start("munged", "--foreground", "--force", "--num-threads=2", *words, stdout=subprocess.DEVNULL)


def _wait_for_nodes(ready: Slurm, number: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(AssertionError):  # the controller is not there yet
            if ready("sinfo", "--noheader", "-N", "-o", "%t").split() == ["idle"] * number:
                return
        assert time.monotonic() < deadline, "\n".join(
            path.read_text()[-2000:] for path in ready.configuration.parent.glob("*.log")
        )
        time.sleep(0.2)
