"The guard on made-up and on real cgroups, and what a cache does when it says no"
import resource, time
from pathlib import Path
from threading import Thread

import psutil
import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem import arena as arena_module
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

def test_a_process_that_is_moved_to_another_group(tmp_path):
    tree(tmp_path, {'proc/self/cgroup': '0::/a\n', **group_v2(f'{v2}/a', 1000, 900), **group_v2(f'{v2}/b', 1000, 700)})
    assert available_memory(tmp_path)==100
    tree(tmp_path, {'proc/self/cgroup': '0::/b\n'})
    assert available_memory(tmp_path)==300

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

# --- pressure, address space, batches in flight ---

@pytest.mark.parametrize('text,frac', [('some avg10=12.50 avg60=1.00 avg300=0.10 total=9\nfull avg10=70.00 avg60=0.00 avg300=0.00 total=7\n', .125),
                                       ('some avg10=0.00 avg60=99.00 avg300=0.00 total=9\n', 0), ('', 0), (None, 0)])
def test_pressure_is_some_avg10(tmp_path, text, frac):
    if text is not None: tree(tmp_path, {'proc/pressure/memory': text})
    assert memory_pressure_frac(tmp_path)==frac

def test_under_pressure_caches_grow_only_beyond_twice_the_reserve(monkeypatch):
    monkeypatch.setattr('fastmem.guard.memory_limits', lambda root='/': {'host RAM': 1000})
    guard,pressed = MemoryGuard(reserve_bytes=300),.0
    monkeypatch.setattr('fastmem.guard.memory_pressure_frac', lambda: pressed)
    assert (guard.budget(),guard.shortfall())==(700,0)
    pressed = .1
    assert (guard.budget(),guard.shortfall())==(400,0)
    monkeypatch.setattr('fastmem.guard.memory_limits', lambda root='/': {'host RAM': 290})
    assert (guard.budget(),guard.shortfall())==(0,10), 'as soon as it is touched'
    monkeypatch.setattr('fastmem.guard.memory_limits', lambda root='/': {'host RAM': 310})
    assert (guard.budget(),guard.shortfall())==(0,0), 'nothing grows, and nothing is given back while the reserve is free'
    pressed = .0
    monkeypatch.setattr('fastmem.guard.memory_limits', lambda root='/': {'host RAM': 290})
    assert MemoryGuard(reserve_bytes=300).shortfall()==0

limited = '''
import resource, sys, psutil
from fastai.vision.all import *
from fastmem.all import *
from fastmem.guard import *
assert address_space_bytes() is None
limit = psutil.Process().memory_info().vms+8_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit,limit))
guard = MemoryGuard(reserve_bytes=1_000_000_000)
assert abs(guard.limits()['RLIMIT_AS']-7_500_000_000)<10_000_000
dls = ImageDataLoaders.from_folder(sys.argv[1], valid_pct=.2, seed=1, item_tfms=Resize(64), bs=8, num_workers=0, device='cpu').in_memory(guard=guard)
for _ in range(2):
    for b in dls.train: pass
assert dls.memory.bound_by==guard.binding()=='RLIMIT_AS', guard.limits()
assert dls.memory.hits and address_space_bytes()>500_000_000
assert guard.shortfall()==0, 'images do not take address space'
'''

def test_a_limit_on_address_space_is_named_and_left_a_reserve(tmp_path):
    photo_folder(tmp_path, 20)
    run_program(tmp_path, limited, tmp_path)

def test_batches_in_flight_are_kept_free_before_and_while_it_fills(tmp_path, monkeypatch):
    photo_folder(tmp_path, 40)
    free_bytes = 2_000_000_000
    monkeypatch.setattr('fastmem.guard.memory_limits', lambda root='/': {'host RAM': free_bytes})
    guard = MemoryGuard(reserve_bytes=100_000_000)
    dls = make(tmp_path, num_workers=2).in_memory(guard=guard)
    item_bytes,n_ahead = 64*64*3,2*2+1
    wanted = 2*60_000_000 + 8*item_bytes*(n_ahead+4*3)
    assert dls.train.in_flight_bytes()==wanted and guard.coming_bytes==wanted and guard.budget()==free_bytes-100_000_000-wanted
    it = iter(dls.train.new(num_workers=0, bs=1))
    coming = [(next(it),guard.coming_bytes)[1] for _ in range(3)]
    few_bytes = item_bytes*(1+4*3)
    assert coming==[wanted,wanted-few_bytes,wanted-few_bytes], 'what has been made is not counted twice'
    it.close()
    assert guard.coming_bytes==wanted
    small = make(tmp_path, num_workers=0).in_memory(guard=guard)
    assert guard.coming_bytes==wanted, 'loaders take turns: the largest counts'

def test_batches_of_loaders_that_run_together_count_together(tmp_path):
    photo_folder(tmp_path, 40)
    guard = MemoryGuard()
    loaders = [make(tmp_path, num_workers=0).in_memory(guard=guard).train for _ in range(2)]
    n_bytes,runs = loaders[0].in_flight_bytes(),[iter(o) for o in loaders]
    assert n_bytes==loaders[1].in_flight_bytes()==guard.coming_bytes
    next(runs[0]); next(runs[0])
    assert guard.coming_bytes==0, 'taken, and the other runs in turn'
    next(runs[1])
    assert guard.coming_bytes==n_bytes, 'it runs beside it'
    next(runs[1])
    assert guard.coming_bytes==0
    for o in runs: o.close()
    assert guard.coming_bytes==n_bytes

def test_the_watch_goes_on_without_a_descriptor(tmp_path):
    "While `/proc` can't be opened nothing is known; later it is"
    photo_folder(tmp_path, 8)
    guard = MemoryGuard()
    dls = make(tmp_path, num_workers=0).in_memory(guard=guard, mode='preload')
    soft,hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3,hard))
        time.sleep(.6)
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft,hard))
    assert guard._watch.is_alive()
    guard._watch = Thread(target=len, args=((),))  # one that has ended
    dls.valid.one_batch()
    assert guard._watch.is_alive()

def test_caches_of_one_guard_count_together(tmp_path):
    "Inputs, targets, and several loaders of a process: one limit, one shortage"
    photo_folder(tmp_path, 40)
    guard = MemoryGuard(limit_bytes=20_000_000)
    a,b = [make(tmp_path, num_workers=0).in_memory(cache=ImageCache(guard), mode='preload') for _ in range(2)]
    assert guard.used_bytes>=a.memory.cached_bytes+b.memory.cached_bytes
    assert guard.limits()['limit_bytes']==20_000_000-guard.used_bytes
    n = a.memory.cached_bytes+b.memory.cached_bytes//2
    guard.give_back(n)
    assert a.memory.cached_bytes+b.memory.cached_bytes<=n, 'more than one of them holds was given back'

# --- the three marks, on a machine that is made up ---

class Machine:
    "So many bytes of RAM, of which others and the caches of `Box`es take some"
    def __init__(self, total_bytes, monkeypatch, others_bytes=0):
        self.total_bytes,self.others_bytes,self.boxes,self.least_bytes = total_bytes,others_bytes,[],total_bytes
        monkeypatch.setattr('fastmem.guard.memory_limits', lambda root='/': {'host RAM': self.free_bytes})
        monkeypatch.setattr('fastmem.guard.memory_pressure_frac', lambda: 0.)
    @property
    def free_bytes(self):
        res = self.total_bytes-self.others_bytes-sum(o.used_bytes for o in self.boxes)
        assert res>0, 'killed'
        self.least_bytes = min(self.least_bytes, res)
        return res

class Box:
    "Stands for an arena and the process that fills it"
    def __init__(self, machine, guard, wanted_bytes):
        self.guard,self.wanted_bytes = guard,wanted_bytes
        self.used_bytes,self.is_full,self.coming_bytes,self.n_given = 0,False,0,0
        machine.boxes.append(self); guard.add(self)
    def limits(self): return {}
    def keeps_watch(self): return True
    def shrink(self, n_bytes):
        given_bytes = min(n_bytes, self.used_bytes)
        self.used_bytes,self.is_full,self.n_given = self.used_bytes-given_bytes,True,self.n_given+1
        return given_bytes
    def live(self, n_bytes=50_000_000):
        "Fill for a quarter of a second, in pieces of 4 MB, and look"
        for _ in range(n_bytes//4_000_000):
            if self.is_full or self.used_bytes>=self.wanted_bytes: break
            if self.guard.budget()<4_000_000: self.is_full = True
            else: self.used_bytes += 4_000_000
        self.guard.look()

def test_marks(monkeypatch):
    "Half of the reserve is gone: give back until all of it is there; half more than it: grow"
    machine = Machine(1000, monkeypatch)
    guard = MemoryGuard(reserve_bytes=100)
    def at(left): machine.others_bytes = 1000-left; return guard.shortfall()
    assert [at(o) for o in (60,50,49,60,90,99,100,60)]==[0,0,25,20,10,1,0,0]
    assert at(20)==80, 'no time for steps'
    assert at(99)==1 and at(100)==0
    assert guard.shortfall(need_bytes=60)==60, 'workers start at once'
    def roomy(left): machine.others_bytes = 1000-left; return guard.is_roomy()
    assert [roomy(o) for o in (100,149,150,151)]==[False,False,False,True]

def test_the_heap_gives_first(monkeypatch):
    "What the C library holds and nobody uses is asked for once a shortage; images go where that is not enough"
    machine,trims = Machine(1_000_000_000, monkeypatch),[]
    guard = MemoryGuard(reserve_bytes=100_000_000)
    box = Box(machine, guard, 10**12)
    for _ in range(100): box.live()
    held,free_heap = box.used_bytes,90_000_000
    def trim(): trims.append(1); machine.others_bytes -= min(free_heap, machine.others_bytes)
    monkeypatch.setattr('fastmem.guard.trim_heap', trim)
    machine.others_bytes = 80_000_000; guard.look()
    assert (len(trims),box.used_bytes,machine.others_bytes)==(1,held,0), 'the heap had enough'
    free_heap,machine.others_bytes = 0,80_000_000
    for _ in range(20): guard.look()
    assert len(trims)==2 and box.used_bytes<held and machine.free_bytes>=100_000_000

@pytest.mark.parametrize('total_bytes,others_bytes', [(12.7e9,1.5e9), (2e9,.6e9)], ids=['colab','container'])
def test_the_reserve_leaves_colab_and_a_small_container_usable(monkeypatch, total_bytes, others_bytes):
    "A dataset that is too large fills what is free; then a model and another process grow by 200 MB/s, take half of all, and go again"
    machine = Machine(int(total_bytes), monkeypatch, int(others_bytes))
    guard = MemoryGuard(reserve_bytes=default_reserve_bytes(int(total_bytes)))
    box = Box(machine, guard, 100_000_000_000)
    box.coming_bytes = 2*60_000_000+64*224*224*3*(5+12)  # two workers, batches of 64
    for _ in range(400): box.live()
    assert box.used_bytes>=.4*(total_bytes-others_bytes), 'a good part of what is free is used'
    assert machine.free_bytes>=guard.reserve_bytes+box.coming_bytes-8_000_000
    full_bytes,n = box.used_bytes,int(total_bytes*.5/50e6)
    for _ in range(n): machine.others_bytes += 50_000_000; box.live()
    for _ in range(20): box.live()
    assert machine.least_bytes>=.2*guard.reserve_bytes and machine.free_bytes>=.99*guard.reserve_bytes
    n_given = box.n_given
    for _ in range(20): box.live()
    assert box.n_given==n_given, 'it rests'
    for _ in range(n): machine.others_bytes -= 50_000_000; box.live()
    for _ in range(400): box.live()
    assert box.used_bytes==pytest.approx(full_bytes, abs=8_000_000) and box.n_given==n_given, 'it has grown again, once'

@pytest.mark.parametrize('n', [2,3])
def test_notebooks_started_together_settle(monkeypatch, n):
    "Each with a guard of its own; then another process takes 100 MB more than is free"
    machine = Machine(2_000_000_000, monkeypatch, 500_000_000)
    boxes = [Box(machine, MemoryGuard(reserve_bytes=200_000_000), 10**10) for _ in range(n)]
    def live(turns):
        for _ in range(turns):
            for o in boxes: o.live()
    live(100)
    assert machine.free_bytes>=195_000_000 and not any(o.n_given for o in boxes)
    assert all(o.used_bytes>1_300_000_000/n*.8 for o in boxes), 'fair shares'
    for _ in range(6): machine.others_bytes += 50_000_000; live(1)
    live(20)
    used,given = [o.used_bytes for o in boxes],[o.n_given for o in boxes]
    assert machine.least_bytes>=40_000_000 and machine.free_bytes>=195_000_000 and sum(used)>=800_000_000, 'no more than was missing, or little'
    live(50)
    assert [o.used_bytes for o in boxes]==used and [o.n_given for o in boxes]==given, 'nothing moves any more'

def test_a_limit_of_its_own_does_not_keep_a_cache_from_growing_again(monkeypatch):
    "After a shortage the limit is smaller than half of the reserve, and no mark for memory"
    machine = Machine(10_000_000_000, monkeypatch)
    box = Box(machine, MemoryGuard(reserve_bytes=1_000_000_000, limit_bytes=100_000_000), 10**10)
    for _ in range(5): box.live()
    assert 96_000_000<=box.used_bytes<=100_000_000
    machine.others_bytes = 9_600_000_000; box.live()
    assert box.used_bytes==0 and box.is_full
    machine.others_bytes = 0; box.live(); box.live(); box.live()
    assert box.used_bytes>=96_000_000

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

program = '''
import os, sys
open(sys.argv[1]+'/cgroup.procs', 'w').write(str(os.getpid()))
from fastai.vision.all import *
from fastmem.all import *
from fastmem.guard import *
assert any('fastmem-test' in o for o in memory_limits()), memory_limits()
assert total_memory()<=int(sys.argv[4])
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
if dls.train.fake_l.num_workers==0:  # workers that start again may be made room for
    assert m0.n_cached==m.n_cached>0, (m0,m)
    assert abs(hits/(hits+misses)-m.cached_frac)<1e-9, (hits,misses,m)
print(f'bound by {m.bound_by}, kept {m.cached_frac:.3f}')
dls.train.cache.check()
'''

@pytest.mark.parametrize('workers,limit_bytes', [(0,900_000_000), (2,700_000_000)])
def test_more_data_than_a_real_cgroup_allows_is_not_killed(tmp_path, cgroup, workers, limit_bytes):
    "fastai takes 530 MB, the reserve 128, and libraries in the page cache up to 100: of 700 MB two workers take all that is left"
    photo_folder(tmp_path/'photos', 20)
    said = [o for o in run_program(tmp_path, program, cgroup(limit_bytes), tmp_path, str(workers), str(limit_bytes)).splitlines() if o.startswith('fastmem:')]
    assert len(said)==1 and 'cgroup' in said[0], said

# The audit

def _tampered(cache, what):
    "Break one thing"
    arena = cache.arena
    if what=='mode': arena.modes[0] = 200
    elif what=='value_bytes': arena.value_bytes[0] = 0
    elif what=='size': arena.sizes[0,:2] = 1
    elif what=='outside': arena.entries[0] += np.uint64(1<<30)
    elif what=='overlap': arena.entries[0] = arena.entries[1]
    elif what=='order': arena._order[0][:] = arena._order[0][::-1].copy()
    elif what=='memory': arena_module._punch(arena.fd, arena.start, 1<<30)
    elif what=='shared': arena.firsts[0],arena.seconds[0] = arena.firsts[1],arena.seconds[1]

@pytest.mark.parametrize('what', ['mode','value_bytes','size','outside','overlap','order','memory','shared'])
def test_the_audit_finds_what_is_broken(tmp_path, what):
    photo_folder(tmp_path, 12)
    cache = ImageCache(guard=MemoryGuard())
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.2, bs=4, item_tfms=Resize(32), num_workers=0, device='cpu').in_memory(cache=cache, mode='preload')
    cache.find(get_image_files(tmp_path)*9, dls.train.columns[0].recipe)  # brings the order up to date
    cache.check(); dls.memory.check()
    _tampered(cache, what)
    with pytest.raises(AssertionError, match='slot'): dls.memory.check()

elsewhere = '''
import os, sys
from fastai.vision.all import *
sys.modules['fcntl'] = sys.modules['resource'] = None
del os.memfd_create
from fastmem.all import *
print(MemoryGuard(), probe(sys.argv[1], size=32))
dls = ImageDataLoaders.from_folder(sys.argv[1], valid_pct=.2, item_tfms=Resize(32), bs=2, num_workers=0)
try: dls.in_memory()
except NotImplementedError as e: assert 'needs Linux' in str(e)
else: raise AssertionError('no error')
dls.one_batch()
'''

def test_elsewhere_than_on_linux_there_is_a_guard_a_plan_and_a_clear_error(tmp_path):
    "Without `fcntl`, `resource` and `memfd_create`, as on Windows"
    photo_folder(tmp_path, 8, size=(60,50))
    assert 'host RAM' in run_program(tmp_path, elsewhere, tmp_path)

def test_a_large_reserve_is_made_whole_long_before_half_of_it_is_gone(monkeypatch):
    guard,left = MemoryGuard(reserve_bytes=4_000_000_000),[0]
    monkeypatch.setattr('fastmem.guard.available_memory', lambda: left[0])
    monkeypatch.setattr('fastmem.guard.memory_pressure_frac', lambda: 0.)
    def short(n): left[0] = n; return guard.shortfall()
    assert short(4_100_000_000)==0 and short(3_800_000_000)==0 and short(3_700_000_000)>0, 'what batches take for a moment is let be'
    assert short(3_900_000_000)>0 and short(4_000_000_000)==0, 'once begun it goes on until the reserve is whole'
    small = MemoryGuard(reserve_bytes=200_000_000)
    left[0] = 110_000_000; assert small.shortfall()==0
    left[0] = 90_000_000; assert small.shortfall()>0
