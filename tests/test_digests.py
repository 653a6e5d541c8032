"""The memory of an agent does not grow from iteration to iteration."""

from pathlib import Path

from conftest import start

from hpc_maml.sampling.trajectory import batch_dtype

TASKS, EPISODES, HORIZON, ITERATIONS, SETTLED = 3, 50, 100, 40, 15


def test_the_memory_of_an_agent_does_not_grow():
    job = start(
        2,
        f"meta_batch_size={TASKS}",
        f"fast_batch_size={EPISODES}",
        f"horizon={HORIZON}",
        f"num_iterations={ITERATIONS}",
        "checkpoint.every=10",
        "policy.hidden_sizes=[8]",  # little work beside the memory
        "trpo.cg_iters=2",
        "mpi.wait_limit=60",
        "device=cpu",
        python=(str(Path(__file__).parent / "resident.py"),),
        OPENBLAS_NUM_THREADS="1",
    )
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, out + err
    words = [line.split() for line in out.splitlines() if line.startswith("resident")]
    resident = [1024 * int(number) for _, number in words]
    assert len(resident) == ITERATIONS
    batches = 2 * TASKS * batch_dtype(HORIZON, EPISODES, (2,), (2,), "f4").itemsize
    settled, later = max(resident[:SETTLED]), max(resident[SETTLED:])
    # what is kept of one batch in ten would show
    assert later - settled < (ITERATIONS - SETTLED) * batches / 10, (settled, later, batches)
