"The guard on made-up and on real cgroups, and what a cache does when it says no"
import uuid
from pathlib import Path

import psutil
import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem.guard import *
from helpers import photo_folder, run_program

def tree(root, files):
    for name,text in files.items():
        (p := Path(root)/name).parent.mkdir(parents=True, exist_ok=True)
        p.write_text(str(text))
    return root

def group_v1(folder, limit, usage, inactive=0):
    return {f'{folder}/memory.limit_in_bytes': limit, f'{folder}/memory.usage_in_bytes': usage,
            f'{folder}/memory.stat': f'cache 7\ninactive_file 1\ntotal_inactive_file {inactive}\n'}

def group_v2(folder, limit, usage, inactive=0, high='max'):
    return {f'{folder}/memory.max': limit, f'{folder}/memory.high': high, f'{folder}/memory.current': usage,
            f'{folder}/memory.stat': f'anon 1\ninactive_file {inactive}\nactive_file 5\n'}

v1,v2 = 'sys/fs/cgroup/memory','sys/fs/cgroup'
no_limit = 9223372036854771712

def test_no_cgroup(tmp_path):
    limits = memory_limits(tmp_path)
    assert list(limits)==['host RAM'] and total_memory(tmp_path)==psutil.virtual_memory().total

@pytest.mark.parametrize('text', ['0::/a/b\n', '0::/a/b\n1:name=systemd:/x\n'])
def test_v2_every_ancestor_counts(tmp_path, text):
    tree(tmp_path, {'proc/self/cgroup': text, **group_v2(f'{v2}/a/b', 1000, 900), **group_v2(f'{v2}/a', 5000, 4950), **group_v2(v2, 'max', 10**12)})
    assert available_memory(tmp_path)==50
    assert len(memory_limits(tmp_path))==3 and total_memory(tmp_path)==1000

def test_v2_inactive_file_is_free_and_high_binds(tmp_path):
    tree(tmp_path, {'proc/self/cgroup': '0::/a\n', **group_v2(f'{v2}/a', 1000, 900, inactive=300, high=800)})
    assert available_memory(tmp_path)==200

def test_usage_above_the_limit_is_not_negative(tmp_path):
    tree(tmp_path, {'proc/self/cgroup': '0::/a\n', **group_v2(f'{v2}/a', 1000, 1500)})
    assert available_memory(tmp_path)==0

def test_v1_counts_total_inactive_file(tmp_path):
    tree(tmp_path, {'proc/self/cgroup': '9:cpu,cpuacct:/z\n4:memory:/a/b\n', **group_v1(f'{v1}/a/b', 1000, 900, inactive=100),
                    **group_v1(f'{v1}/a', no_limit, 950), **group_v1(v1, 10**6, 10**6-150)})
    assert available_memory(tmp_path)==150

def test_both_versions_at_once(tmp_path):
    tree(tmp_path, {'proc/self/cgroup': '4:memory:/a\n0::/b\n', **group_v1(f'{v1}/a', 1000, 100),
                    'proc/self/mountinfo': ('30 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n'
                                            '31 1 0:2 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n'),
                    **group_v2('sys/fs/cgroup/unified/b', 500, 100)})
    assert available_memory(tmp_path)==400

def test_container_sees_its_group_as_the_mounted_root(tmp_path):
    "Without a cgroup namespace, /proc/self/cgroup holds the host's path while only the container's folder is mounted"
    tree(tmp_path, {'proc/self/cgroup': '4:memory:/docker/abc/inner\n', **group_v1(v1, 700, 100), **group_v1(f'{v1}/inner', 650, 100),
                    'proc/self/mountinfo': '30 1 0:1 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n'})
    assert sorted(memory_limits(tmp_path).values())[:2]==[550,600]

def test_group_outside_the_mount(tmp_path):
    tree(tmp_path, {'proc/self/cgroup': '0::/../../other\n', **group_v2(v2, 700, 100),
                    'proc/self/mountinfo': '30 1 0:1 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n'})
    assert available_memory(tmp_path)==600

def test_guard_takes_the_least_and_names_it():
    guard = MemoryGuard(reserve_bytes=0, limit_bytes=1000)
    assert guard.budget()==1000 and guard.binding()=='limit_bytes'
    assert MemoryGuard(limit_bytes=2e9).limit_bytes==2_000_000_000
    assert MemoryGuard(reserve_bytes=0).budget()<=psutil.virtual_memory().total

@pytest.mark.parametrize('bad', [-1, '2GB', 1.5, True, float('inf'), float('nan')])
def test_bad_bytes_name_the_argument_and_the_value(bad):
    with pytest.raises(ValueError, match=f'limit_bytes.*{bad!r}'): MemoryGuard(limit_bytes=bad)
    with pytest.raises(ValueError, match='reserve_bytes'): MemoryGuard(reserve_bytes=bad)

@pytest.mark.parametrize('total,left', [(12.7e9, 11e9), (2e9, 1.7e9), (700e6, 500e6)])
def test_reserve_leaves_colab_and_small_containers_usable(total, left):
    assert total-default_reserve_bytes(int(total)) >= left

# --- what a cache does when the guard says no ---

def make(path, **kwargs):
    set_seed(0)
    return ImageDataLoaders.from_folder(path, valid_pct=.2, seed=1, item_tfms=Resize(64), bs=8, device='cpu', **kwargs)

def passes(dls, n=1):
    for _ in range(n):
        for dl in dls.loaders:
            for _ in dl: pass

@pytest.mark.parametrize('workers', [0,2])
def test_partial_fills_its_budget_and_says_so_once(tmp_path, capsys, workers):
    photo_folder(tmp_path, 80)
    total = probe(tmp_path, size=64).total_bytes
    guard = MemoryGuard(limit_bytes=total//2)
    dls = make(tmp_path, num_workers=workers).in_memory(guard=guard)
    passes(dls)
    cold = dls.memory
    passes(dls, 2)
    warm = dls.memory
    out = capsys.readouterr().out
    assert out.count('fastmem:')==1 and len(out.strip().splitlines())==1 and 'read from disk' in out and 'limit_bytes' in out
    assert guard.used_bytes <= guard.limit_bytes*1.02
    assert .4<=warm.cached_frac<=.5 and warm.n_cached==cold.n_cached, 'never more, never evicted'
    hits,misses = warm.hits-cold.hits, warm.misses-cold.misses
    assert hits/(hits+misses)==pytest.approx(warm.cached_frac, abs=1e-9)

def test_stream_keeps_nothing(tmp_path, capsys):
    photo_folder(tmp_path, 20)
    dls = make(tmp_path, num_workers=0).in_memory(guard=MemoryGuard(limit_bytes=100_000), on_full='stream')
    passes(dls, 2)
    assert dls.memory.n_cached==0 and dls.memory.misses==40
    assert 'all are read from disk' in capsys.readouterr().out

def test_raise_has_the_figures_and_changes_nothing(tmp_path):
    photo_folder(tmp_path, 20)
    dls = make(tmp_path, num_workers=0)
    before,guard = list(dls.loaders),MemoryGuard(limit_bytes=100_000)
    with pytest.raises(MemoryError, match=r'20 images need .*B resized.*limit_bytes leaves 100 kB'): dls.in_memory(guard=guard, on_full='raise', mode='preload')
    assert dls.loaders==before and guard.used_bytes<10_000

def test_block_raises_before_the_first_batch(tmp_path):
    photo_folder(tmp_path, 20)
    block = DataBlock((MemImageBlock(guard=MemoryGuard(limit_bytes=100_000), on_full='raise'), CategoryBlock),
                      get_items=get_image_files, get_y=parent_label, item_tfms=Resize(64))
    dls = block.dataloaders(tmp_path, bs=8, num_workers=0)
    with pytest.raises(MemoryError, match='20 images need'): first(dls.train)

@pytest.mark.parametrize('store', ['resized','decoded'])
def test_plan_is_within_ten_percent(tmp_path, store):
    photo_folder(tmp_path, 60)
    dls = make(tmp_path, num_workers=0).in_memory(mode='preload', store=store)
    cache = dls.train.cache
    assert cache.plan().total_bytes==pytest.approx(dls.memory.cached_bytes, rel=.1)
    assert cache.arena.used_bytes==pytest.approx(cache.plan().total_bytes, rel=.1)

_v1_root = Path('/sys/fs/cgroup/memory')

@pytest.fixture
def cgroup_700mb():
    "A real version 1 cgroup with a limit of 700 MB, removed at the end"
    group = _v1_root/f'fastmem-test-{uuid.uuid4().hex[:8]}'
    try:
        group.mkdir()
        (group/'memory.limit_in_bytes').write_text('700000000')
    except OSError: pytest.skip('this machine does not let us make a memory cgroup')
    yield group
    group.rmdir()

program = '''
import os, sys
open(sys.argv[1]+'/cgroup.procs', 'w').write(str(os.getpid()))
from fastai.vision.all import *
from fastmem.all import *
from fastmem.guard import *
assert any('fastmem-test' in o for o in memory_limits()), memory_limits()
assert total_memory()<=700_000_000
files = get_image_files(sys.argv[2])
# each photo of 560 kB many times over, as so many files
links = Path(sys.argv[2])/'many'; links.mkdir()
for i in range(1500): (links/f'{i}.jpg').hardlink_to(files[i%len(files)])
items = get_image_files(links)
set_seed(0)
dls = ImageDataLoaders.from_lists('.', items, [str(i%2) for i in range(len(items))], valid_pct=.2, seed=1, item_tfms=RandomResizedCrop(64),
                                  bs=16, num_workers=int(sys.argv[3]), device='cpu').in_memory(store='decoded')
for _ in range(2):
    for dl in dls.loaders:
        for b in dl: pass
    m0,m = globals().get('m'),dls.memory
hits,misses = m.hits-m0.hits,m.misses-m0.misses
assert m.n_cached<m.n_items, m
assert m.n_cached or dls.train.fake_l.num_workers, m  # two workers take all that fastai's 530 MB leave of 700
assert m0.n_cached==m.n_cached, (m0,m)
assert abs(hits/(hits+misses)-m.cached_frac)<1e-9, (hits,misses,m)
print(f'bound by {m.bound_by}, kept {m.cached_frac:.3f}')
dls.train.cache.check()
'''

@pytest.mark.parametrize('workers', [0,2])
def test_more_data_than_a_real_cgroup_allows_is_not_killed(tmp_path, cgroup_700mb, workers):
    photo_folder(tmp_path/'photos', 20)
    said = [o for o in run_program(tmp_path, program, cgroup_700mb, tmp_path, str(workers)).splitlines() if o.startswith('fastmem:')]
    assert len(said)==1 and 'cgroup' in said[0], said
