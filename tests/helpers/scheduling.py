"""How `make test` shares tests among its workers: one by one, and together what waits for one long run."""

from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("test_vllm_server.py", "test_demo.py", "test_rounds_run.py", "test_memory_run.py")


class OneByOne(LoadScopeScheduling):
    """A worker that is free takes the next unit: a file of TOGETHER, or a test with all its parameters.

    Units of many tests come first, so that no long file is left for the end. (Marks of xdist_group would say the same;
    pytest-xdist 3.8 loses them under pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return file if file.endswith(TOGETHER) else nodeid.partition("[")[0]
