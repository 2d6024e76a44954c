"Every test leaves its caches whole, and no process behind"
import os, time, uuid, warnings
from pathlib import Path

import matplotlib
import psutil
import pytest

matplotlib.use('Agg')
warnings.filterwarnings('ignore', category=FutureWarning, module='torch')
root = Path(__file__).parents[1]

def _is_helper(process):
    "Whether it is one of multiprocessing's own, or `ready.py`, which stay, or has ended meanwhile; what is forked from `ready.py` has to end"
    try:
        text = ' '.join(process.cmdline())
        return 'resource_tracker' in text or 'forkserver' in text or ('ready.py' in text and process.ppid()==os.getpid())
    except psutil.Error: return True

@pytest.fixture(autouse=True)
def clean():
    from fastmem.guard import _shared, shared_guard
    _shared.clear()  # no test finds the images of another in memory
    yield
    for cache in list(shared_guard().caches): cache.check()
    mine = [o for o in psutil.Process().children(recursive=True) if not _is_helper(o)]
    gone,left = psutil.wait_procs(mine, timeout=10)
    assert not left, f'processes left behind: {left}'

_v1_root = Path('/sys/fs/cgroup/memory')

@pytest.fixture
def cgroup():
    "Make a real version 1 cgroup with a limit in bytes; removed at the end"
    made = []
    def make(limit_bytes):
        group = _v1_root/f'fastmem-test-{uuid.uuid4().hex[:8]}'
        try:
            group.mkdir(); made.append(group)
            (group/'memory.limit_in_bytes').write_text(str(limit_bytes))
        except OSError: pytest.skip('this machine does not let us make a memory cgroup')
        return group
    yield make
    for o in made:
        for _ in range(50):
            if not (o/'cgroup.procs').read_text(): break
            time.sleep(.1)  # a process that has ended leaves its group a moment later
        o.rmdir()

def pytest_collection_modifyitems(items):
    "`from fastai.vision.all import *` brings fastcore's `test_eq` and others, which are no tests of ours"
    items[:] = [o for o in items if o.function.__module__==o.module.__name__]
