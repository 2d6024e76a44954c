"Workers, faults and memory: what a notebook cell can't show"
import gc, os, shutil, threading, time
from pathlib import Path

import psutil
import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem.arena import Arena
from fastmem.recipe import *
from fastmem.threads import *
from fastmem.cache import *
from helpers import photo_folder, run_forked, run_program

def make(path, **kwargs):
    set_seed(0)
    return ImageDataLoaders.from_folder(path, valid_pct=.2, seed=1, item_tfms=kwargs.pop('item_tfms', Resize(64)), bs=8, device='cpu', **kwargs)

def passes(dls, n=1):
    for _ in range(n):
        for dl in dls.loaders:
            for _ in dl: pass

start_method = '''
import torch.multiprocessing as mp, shutil, sys
from fastai.vision.all import *
from fastmem.all import *
from fastmem.recipe import *
from fastmem.cache import *
from helpers import Inverted, photo_folder

if __name__=='__main__':
    method,path,store = sys.argv[1:]
    mp.set_start_method(method)
    photo_folder(path, 30)
    tfms = [Resize(64)] if store=='resized' else [Inverted(), RandomResizedCrop(64)]
    dls = ImageDataLoaders.from_folder(path, valid_pct=.2, seed=1, item_tfms=tfms, bs=8, num_workers=2 if method=='fork' else 1, device='cpu').in_memory()  # each that is not forked imports fastai
    n = len(dls.train_ds)
    for b in dls.train: pass  # `drop_last` leaves none unread
    cold = dls.memory
    assert (cold.store,cold.n_cached,cold.hits,cold.misses)==(store,n,0,n), cold
    shutil.rmtree(path)
    for b in dls.train: pass
    assert dls.memory.misses==n and dls.memory.hits==n, dls.memory
    dls.train.cache.check()
'''

@pytest.mark.parametrize('method,store', [('fork','resized'), ('fork','decoded'), ('spawn','decoded'), ('forkserver','decoded')])
def test_after_one_pass_the_folder_may_go(tmp_path, method, store):
    "Workers fill what every later process reads; with a transform that is not known they are started in warm epochs too"
    run_forked(tmp_path, start_method, method, tmp_path/'photos', store)

def test_no_workers(tmp_path):
    photo_folder(tmp_path, 30)
    dls = make(tmp_path, num_workers=0).in_memory()
    passes(dls); shutil.rmtree(tmp_path); passes(dls, 2)
    assert (dls.memory.misses,dls.memory.hits)==(30,60)

def test_warm_epochs_start_no_process(tmp_path):
    photo_folder(tmp_path, 20)
    dls = make(tmp_path, num_workers=2).in_memory(mode='preload')
    before = psutil.Process().children()
    for _ in dls.train: assert psutil.Process().children()==before
    assert dls.train.fake_l.num_workers==2

def test_new_in_the_middle_of_a_warm_epoch_keeps_its_workers(tmp_path):
    photo_folder(tmp_path, 20)
    dls = make(tmp_path, num_workers=2).in_memory(mode='preload')
    for _ in dls.train: assert dls.valid.new().fake_l.num_workers==2 and dls.train.new().fake_l.num_workers==2

# --- preload ---

def test_preload_lists_bad_files_and_a_batch_raises_them(tmp_path, capsys):
    photo_folder(tmp_path, 20)
    bad = sorted(get_image_files(tmp_path))[3]
    make_dls = lambda: make(tmp_path, num_workers=0)
    dls = make_dls()
    bad.write_bytes(b'no image at all')
    dls.in_memory(mode='preload')
    out = capsys.readouterr().out
    assert "can't be read: 1." in out and str(bad) in out and dls.memory.n_cached==19
    with pytest.raises(Exception) as stock: passes(make_dls())
    with pytest.raises(type(stock.value)) as ours: passes(dls)
    assert str(bad) in str(ours.value)

@pytest.mark.parametrize('tfms', [Resize(64), RandomResizedCrop(64)])
def test_skip_drops_bad_files(tmp_path, tfms):
    photo_folder(tmp_path, 20)
    files = sorted(get_image_files(tmp_path))
    make_dls = lambda: make(tmp_path, item_tfms=tfms, num_workers=0, shuffle=False)
    dls = make_dls().in_memory(on_error='skip')
    bad = [o for o in files if o in set(dls.train_ds.items)][:2]
    for o in bad: o.write_bytes(b'')
    assert sum(len(y) for _,y in dls.train.new(drop_last=False))==len(dls.train_ds)-2

def test_preload_again_reads_nothing(tmp_path):
    photo_folder(tmp_path, 20)
    dls = make(tmp_path, num_workers=0).in_memory(mode='preload')
    shutil.rmtree(tmp_path)
    dls.preload()
    assert dls.memory.n_cached==20

interrupted = '''
import os, signal, sys, threading, time
from fastai.vision.all import *
from fastmem.all import *
from fastmem.recipe import *
from fastmem.cache import *
from fastmem import cache as module
path = sys.argv[1]
dls = ImageDataLoaders.from_folder(path, valid_pct=.2, seed=1, item_tfms=Resize(64), bs=8, num_workers=0, device='cpu').in_memory()
c = dls.train.cache
def interrupt():
    while int(c.arena.ready(np.arange(60)).sum())<10: time.sleep(.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
make = module.make_pixels
module.make_pixels = lambda *args: (time.sleep(.01), make(*args))[1]
try: dls.preload(); raise SystemExit('was not interrupted')
except KeyboardInterrupt: pass
c.check()
n = dls.memory.n_cached
assert 10<=n<60, n
assert not [t for t in threading.enumerate() if t.name.startswith('fastmem') and t.name!='fastmem-watch']
read = []
module.make_pixels = lambda file,recipe: (read.append(file), make(file, recipe))[1]
dls.preload()
assert dls.memory.n_cached==60 and len(read)==60-n, (len(read), n)
c.check()
'''

def test_ctrl_c_in_a_preload_and_going_on(tmp_path):
    photo_folder(tmp_path, 60)
    run_forked(tmp_path, interrupted, tmp_path)

killed = '''
import multiprocessing, sys
from fastai.vision.all import *
from fastmem.all import *
path = sys.argv[1]
dls = ImageDataLoaders.from_folder(path, valid_pct=.2, seed=1, item_tfms=Resize(64), bs=8, num_workers=2, device='cpu').in_memory()
try:
    for i,_ in enumerate(dls.train):
        if i==1: [o.kill() for o in multiprocessing.active_children()]
    raise SystemExit('no worker was killed')
except RuntimeError as e: assert 'killed' in str(e) or 'exited' in str(e), e
except (OSError, EOFError): pass  # a batch of it can't be fetched any more
dls.train.cache.check()
for dl in dls.loaders:
    for _ in dl.new(drop_last=False): pass
assert dls.memory.n_cached==60, dls.memory
dls.train.cache.check()
'''

def test_a_killed_worker_leaves_a_whole_cache(tmp_path):
    "In a process of its own: PyTorch raises a worker's death wherever the main thread happens to be, in pytest itself too"
    photo_folder(tmp_path, 60)
    run_forked(tmp_path, killed, tmp_path)

# --- purge ---

def test_purge_gives_everything_back_twice(tmp_path):
    photo_folder(tmp_path, 30)
    dls = make(tmp_path, num_workers=0).in_memory(mode='preload')
    arena,cached_bytes = dls.train.cache.arena,dls.memory.cached_bytes
    files = {o: o.stat().st_mtime_ns for o in get_image_files(tmp_path)}
    given = dls.purge()
    assert given==pytest.approx(cached_bytes, rel=.05)
    assert os.fstat(arena.fd).st_blocks*512 < 100_000, 'only bookkeeping is left'
    assert dls.purge()==0
    passes(dls)
    assert dls.memory.n_cached==0, "after a purge, 'preload' waits for the next preload()"
    dls.preload()
    assert dls.memory.n_cached==30 and {o: o.stat().st_mtime_ns for o in get_image_files(tmp_path)}==files

def test_lazy_fills_again_after_a_purge(tmp_path):
    photo_folder(tmp_path, 30)
    dls = make(tmp_path, num_workers=2).in_memory()
    passes(dls); dls.purge(); passes(dls)
    assert dls.memory.n_cached==30

def by_content(path, n=48):
    "Images of one value each, so that a wrong or torn one can be told: class folder, name and pixels are the same number"
    for i in range(n):
        (folder := Path(path)/str(i)).mkdir(parents=True)
        Image.new('RGB', (90+i%7, 80), (i+1,)*3).save(folder/f'{i}.png')

def check_content(x, y, vocab):
    "Every pixel of a batch of `by_content` is that of its own image"
    wanted = torch.tensor([int(vocab[i])+1 for i in y]).view(-1,1,1,1)
    assert (x.as_subclass(torch.Tensor)==wanted).all(), 'a pixel of another image, or of none'

@pytest.mark.parametrize('workers,tfms', [(0,[Resize(32)]), (2,[Resize(32)]), (2,[Resize(32),FlipItem()]), (2,[FlipItem(),Resize(32)])])
def test_purging_while_workers_read_never_gives_a_wrong_pixel(tmp_path, workers, tfms):
    by_content(tmp_path)
    dls = make(tmp_path, item_tfms=tfms, num_workers=workers, batch_tfms=[]).in_memory()
    dls.train.after_batch = Pipeline([])
    vocab,stop,n = dls.vocab,threading.Event(),0
    def purge():
        while not stop.is_set(): dls.purge(); time.sleep(.002)
    thread = threading.Thread(target=purge); thread.start()
    try:
        for _ in range(6):
            for x,y in dls.train:
                check_content(x, y, vocab)
                n += len(y)
    finally: stop.set(); thread.join()
    assert n==6*(len(dls.train_ds)//8*8)
    dls.train.cache.check()

# --- memory that runs short while training runs ---

@pytest.mark.parametrize('workers,tfms', [(0,[Resize(32)]), (2,[Resize(32),FlipItem()])])
def test_shrinking_while_workers_read_never_gives_a_wrong_pixel(tmp_path, workers, tfms):
    by_content(tmp_path)
    dls = make(tmp_path, item_tfms=tfms, num_workers=workers).in_memory(mode='preload')
    dls.train.after_batch = Pipeline([])
    arena,vocab,stop = dls.train.cache.arena,dls.vocab,threading.Event()
    def shrink():
        while not stop.is_set(): arena.shrink(4000); arena.is_full = False; time.sleep(.001)
    thread = threading.Thread(target=shrink); thread.start()
    try:
        for _ in range(6):
            for x,y in dls.train:
                check_content(x, y, vocab)
    finally: stop.set(); thread.join()
    dls.train.cache.check()

def test_short_memory_gives_back_what_is_short_and_training_goes_on(tmp_path, monkeypatch, capsys):
    photo_folder(tmp_path, 40)
    dls = make(tmp_path, num_workers=2).in_memory(mode='preload', guard=MemoryGuard())
    cache,full = dls.train.cache,dls.memory
    capsys.readouterr()
    with monkeypatch.context() as m:
        m.setattr(MemoryGuard, 'is_roomy', lambda self: False)
        cache.guard.give_back(cache.guard.used_bytes-full.cached_bytes//2)
        for _ in dls.valid: pass
        left = dls.memory
        assert full.n_cached*.4<=left.n_cached<=full.n_cached*.55, 'half was given back, and nothing is kept anew'
        out = capsys.readouterr().out
        assert out.count('fastmem:')==1 and 'given back' in out
        cache.check()
    while cache.arena.is_full: time.sleep(.01)  # the guard's own look, four times a second
    passes(dls)
    assert dls.memory.n_cached==40, 'there is plenty again'

# --- one copy, no leak ---

pss = '''
import statistics, sys, psutil
from fastai.vision.all import *
from fastmem.all import *
from helpers import Inverted
files = get_image_files(sys.argv[1])
for i in range(int(sys.argv[2])):
    for o in files: o.with_name(f'{i}_{o.name}').hardlink_to(o)
files = get_image_files(sys.argv[1])
def tree(): return sum(o.memory_full_info().pss for o in [psutil.Process(), *psutil.Process().children(recursive=True)] if o.status()!='zombie')
def peak(dls):
    res,own = [],[0]
    for dl in dls.loaders:
        for i,b in enumerate(dl):
            del b
            if i%4: continue  # a look takes long
            res.append(tree())
            own += [o.memory_full_info().uss for o in psutil.Process().children() if o.status()!='zombie']
    print(f'a worker has up to {max(own)/1e6:.0f} MB of its own')
    return float(np.median(res))
def make(): return ImageDataLoaders.from_lists('.', files, ['a']*len(files), valid_pct=.2, seed=1, item_tfms=[Inverted(), RandomResizedCrop(64)], bs=16, num_workers=4, device='cpu')
stock = make()
for _ in range(2): base = peak(stock)
dls = make().in_memory(store='decoded', mode='preload')
peak(dls); warm = peak(dls)
cached = dls.memory.cached_bytes
assert cached>500e6, cached
print(f'{cached/1e6:.0f} MB cached, PSS {(warm-base)/1e6:.0f} MB above stock: {(warm-base)/cached:.3f}')
assert warm-base <= 1.1*cached, (warm, base, cached)
'''

def test_four_workers_hold_one_copy(tmp_path):
    photo_folder(tmp_path, 300)
    print(run_program(tmp_path, pss, tmp_path, '3'))

creep = '''
import statistics, sys, psutil
from fastai.vision.all import *
from fastmem.all import *
from helpers import Inverted
files = get_image_files(sys.argv[1])*60
def own(o):
    "Bytes of its share of what is no file: of libraries, that depends on who else runs on the machine"
    return sum(int(line.split()[1])*1024 for line in Path(f'/proc/{o.pid}/smaps_rollup').read_text().splitlines() if line.startswith(('Pss_Anon','Pss_Shmem')))
def tree(): return sum(own(o) for o in [psutil.Process(), *psutil.Process().children()] if o.status()!='zombie')
dls = ImageDataLoaders.from_lists('.', files, ['a']*len(files), valid_pct=.1, seed=1, item_tfms=[Inverted(), Resize(16)], bs=64, num_workers=2, device='cpu').in_memory()
def epoch(): return min(tree() for i,_ in enumerate(dls.train) if i%4==0 and len(dls.train)//2<i<len(dls.train)-8)  # batches in flight come and go
pss = [epoch() for _ in range(12)][2:]
print([f'{o/1e6:.0f} MB' for o in pss])
early,late = statistics.median(pss[:5]),statistics.median(pss[5:])  # a single look may find a worker gone already
assert abs(late/early-1) < .02, pss
'''

def test_memory_does_not_creep_over_ten_epochs(tmp_path):
    photo_folder(tmp_path, 60, size=(32,32))
    print(run_program(tmp_path, creep, tmp_path))

def test_a_process_killed_while_it_shrinks_leaves_no_black_images():
    arena = Arena(MemoryGuard(limit_bytes=10_000_000))
    first = arena.reserve_slots(2)
    arena.write(first, np.ones((3,100,100), np.uint8), (100,100))
    arena.entries[first] += np.uint64(1<<40)  # stamped with the next generation, and killed before it came
    arena.purge()
    assert arena.slot(first) is None

def held_bytes(): return sum(o.used_bytes for o in shared_guard().arenas)

def test_running_the_cell_again_does_not_leak(tmp_path):
    photo_folder(tmp_path, 20)
    gc.collect()
    before = held_bytes()
    dls = make(tmp_path, num_workers=2).in_memory(mode='preload')
    one = held_bytes()-before
    for _ in range(10): dls = make(tmp_path, num_workers=2).in_memory(mode='preload')
    assert held_bytes()-before<=one*1.05
    def n_open(): return min((time.sleep(.01), len(os.listdir('/proc/self/fd')))[1] for _ in range(20))  # the guard's watch opens files of /proc for a moment
    fds = n_open()
    for _ in range(5): dls = make(tmp_path, num_workers=2).in_memory()
    assert n_open()<=fds

def test_a_dropped_learner_is_not_kept(tmp_path):
    photo_folder(tmp_path, 20)
    gc.collect(); before = held_bytes()
    for _ in range(4): learn = Learner(make(tmp_path, num_workers=0).in_memory(mode='preload'), nn.Flatten(), loss_func=CrossEntropyLossFlat())
    one = learn.dls.train.cache.arena.used_bytes
    assert held_bytes()-before<=2.1*one, 'at most the last one and the one before, which is garbage already'

def test_an_arena_is_not_pickled(tmp_path):
    with pytest.raises(TypeError, match="can't be pickled"): pickle.dumps(ImageCache().arena)

@pytest.mark.parametrize('n_threads', [1,8])
def test_many_threads_and_processes_fill_at_once(n_threads):
    "Two processes of many threads write to the same and to other places; every image is whole and none overlaps"
    arena = Arena(MemoryGuard(limit_bytes=200_000_000))
    first = arena.reserve_slots(400)
    def planes(i): return np.full((3,40+i%9,50+i%13), i%251, np.uint8)
    def fill(offset):
        for _ in map_threads(lambda i: arena.write(first+i, planes(i), (100,100)), [(i+offset)%400 for i in range(400)], n_threads): pass
    pid = os.fork()
    if pid==0:
        try: fill(100)
        finally: os._exit(0)
    fill(0); os.waitpid(pid, 0)
    arena.check()
    for i in range(400): assert (arena.view(arena.slot(first+i), 3)==planes(i)).all()
