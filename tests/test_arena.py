"Memory that all processes share: what is found where, what is given back, and what is used again"
import os, threading, time

import pytest
from fastai.vision.all import *
from fastmem import arena as arena_module
from fastmem.arena import *
from fastmem.guard import *
from helpers import photo_folder, run_program

def digests(n, seed=0): return np.random.default_rng(seed).integers(1, 1<<63, (n,2)).astype(np.uint64)
def planes(i, n=100): return np.full((3,n,n), i%251, np.uint8)

def in_child(f, *args):
    "What `f` is in a process of its own: whether it ended well"
    if (pid := os.fork()): return lambda: os.waitpid(pid, 0)[1]==0
    try: f(*args); os._exit(0)
    finally: os._exit(9)

# --- digests ---

@pytest.mark.parametrize('n', [1,5,64,65,3000])
def test_digests_are_found_whoever_added_them(n):
    "A few are looked through, many are ordered; those that another process adds meanwhile are found, too"
    arena,first,second = Arena(MemoryGuard()),digests(n),digests(n, 1)
    slots = arena.add(first)
    assert sorted(slots.tolist())==list(range(n)) and (arena.find(first)==slots).all() and (arena.add(first)==slots).all()
    assert (arena.find(second)==-1).all()
    assert in_child(arena.add, second)()
    theirs = arena.find(second)
    assert sorted(theirs.tolist())==list(range(n,2*n)) and [int(arena.find(o[None])[0]) for o in second[:70]]==theirs[:70].tolist()
    arena.check()

def test_digests_one_by_one_and_slots_without():
    arena,all_digests = Arena(MemoryGuard()),digests(2500)
    slots = []
    for o in all_digests:
        slots.append(int(arena.add(o[None])[0]))
        if len(slots)%100==0: arena.reserve_slots(7)
    assert (arena.find(all_digests)==slots).all() and [int(arena.find(o[None])[0]) for o in all_digests]==slots
    assert arena.n_slots==2500+25*7 and (arena.digests()[0]==slots).all()

def test_processes_and_threads_that_add_the_same_agree():
    arena,wanted = Arena(MemoryGuard()),digests(600)
    def add(seed):
        for i in np.random.default_rng(seed).permutation(600).reshape(-1,5): arena.add(wanted[i])
    children,threads = [in_child(add, i) for i in range(2)],[threading.Thread(target=add, args=(i+2,)) for i in range(3)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert all([o() for o in children])
    assert arena.n_slots==600 and sorted(arena.find(wanted).tolist())==list(range(600))
    arena.check()

def test_a_digest_given_twice_has_one_slot():
    arena,some = Arena(MemoryGuard()),digests(3)
    assert arena.add(some[[0,1,0,2,1]]).tolist()==[0,1,0,2,1] and arena.n_slots==3

# --- extras ---

@pytest.mark.parametrize('extras', [b'', b'x', bytes(70_000)])
def test_extras_lie_behind_the_pixels(extras):
    arena = Arena(MemoryGuard())
    first = arena.reserve_slots(3)
    for i in range(3): assert arena.write(first+i, planes(i), (300,200), 5|(left_extras if i==2 else 0), extras=extras)
    for i in range(3):
        slot = arena.slot(first+i)
        assert (arena.view(slot, 3)==planes(i)).all() and arena.extras(first+i)==extras
        assert (slot.mode,slot.has_extras,slot.left_extras,slot.source_size)==(5,bool(extras),i==2,(300,200))
    arena.check()
    arena.purge()
    assert arena.slot(first) is None and arena.extras(first)==b''

# --- windows ---

@pytest.mark.parametrize('bands', [1,3])
@pytest.mark.parametrize('window', [(7,5),(700,600)], ids=['few bytes','many'])
@pytest.mark.parametrize('margins', [(0,0,0),(0,3,9),(2,2,2)], ids=['whole','other sizes','rows'])
def test_windows_of_a_batch(bands, window, margins):
    "Each of an image of its own size, as NumPy cuts it, the last byte of the last image included"
    arena,(width,height),rng = Arena(MemoryGuard()),window,np.random.default_rng(0)
    images = [rng.integers(0, 256, (bands,height+o,width+2*o), dtype=np.uint8) for o in margins]
    first = arena.reserve_slots(len(images))
    for i,o in enumerate(images): arena.write(first+i, o, o.shape[:0:-1], 1)
    left,top = 2*np.array(margins),np.array(margins)
    out = np.empty((len(images),bands,height,width), np.uint8)
    arena.copy_windows(first+np.arange(len(images)), left, top, out)
    for made,o,x,y in zip(out, images, left, top): assert np.array_equal(made, o[:,y:y+height,x:x+width])

# --- what is given back is used again ---

def test_a_purge_takes_addresses_back():
    arena = Arena(MemoryGuard(limit_bytes=50_000_000))
    first,limits = arena.reserve_slots(40),[]
    for _ in range(5):
        for i in range(40): assert arena.write(first+i, planes(i), (100,100))
        limits.append(int(arena.header['next_byte']))
        arena.shrink(300_000); arena.is_full = False
        for i in range(40): assert arena.slot(first+i) or arena.write(first+i, planes(i), (100,100))
        arena.check()
        arena.purge()
    assert max(limits)<2*limits[0]

def test_addresses_of_one_who_may_be_writing_are_not_used_again(monkeypatch):
    "A worker that stops in the middle of a write, and goes on after a purge, does no harm"
    arena = Arena(MemoryGuard(limit_bytes=50_000_000))
    first = arena.reserve_slots(2)
    said,go = os.pipe(),os.pipe()
    def write_slowly():
        monkeypatch.setattr(arena_module, 'write_all', lambda *args: (os.write(said[1], b'.'), os.read(go[0], 1), written(*args)))
        arena.write(first, planes(9), (100,100))
    written = arena_module.write_all
    ended_well = in_child(write_slowly)
    os.read(said[0], 1)
    arena.purge()
    assert arena.write(first+1, planes(1), (100,100))
    os.write(go[1], b'..')
    assert ended_well()
    assert arena.slot(first) is None and (arena.view(arena.slot(first+1), 3)==planes(1)).all()
    arena.purge()
    assert int(arena.header['next_byte'])==align_bytes, 'it has ended'

def test_a_thread_that_is_writing_keeps_its_addresses(monkeypatch):
    arena,written,inside,go = Arena(MemoryGuard(limit_bytes=50_000_000)),arena_module.write_all,threading.Event(),threading.Event()
    first = arena.reserve_slots(2)
    def slowly(*args): inside.set(); go.wait(10); written(*args)
    monkeypatch.setattr(arena_module, 'write_all', slowly)
    thread = threading.Thread(target=arena.write, args=(first, planes(9), (100,100)))
    thread.start(); inside.wait(10)
    monkeypatch.setattr(arena_module, 'write_all', written)
    arena.purge()
    assert arena.write(first+1, planes(1), (100,100))
    go.set(); thread.join()
    assert arena.slot(first) is None and (arena.view(arena.slot(first+1), 3)==planes(1)).all()

cycles = '''
import psutil, resource, sys
from fastai.vision.all import *
from fastmem.all import *
limit = psutil.Process().memory_info().vms+8_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit,limit))
for path in (None, sys.argv[2]):
    dls = ImageDataLoaders.from_folder(sys.argv[1], valid_pct=.2, seed=1, item_tfms=Resize(256), bs=8, num_workers=0, device='cpu')
    dls.in_memory(mode='preload', cache=ImageCache(MemoryGuard(reserve_bytes=4_000_000_000), path=path))
    arena = dls.train.cache.arena
    assert len(arena.pixels)<=1<<30, len(arena.pixels)
    for i in range(12):
        assert dls.memory.n_cached==100, (i, path, dls.memory)
        dls.purge(); dls.preload()
    dls.train.cache.check()
'''

def test_purge_and_preload_use_up_no_address_space(tmp_path):
    "13 times 24 MB in 1 GB at most, and then in 268 MB: in memory, and in a file"
    photo_folder(tmp_path/'photos', 100, (60,50))
    run_program(tmp_path, cycles, tmp_path/'photos', tmp_path/'cache')

# --- told once ---

def test_what_is_told_once_is_told_once_over_processes_and_again_after_it_was_cleared():
    arena = Arena(MemoryGuard())
    def tell(): assert arena.set_once(3)
    assert in_child(tell)() and not arena.set_once(3) and arena.set_once(is_given_bit)
    arena.is_full = True; arena.is_full = False
    assert arena.set_once(is_given_bit) and not arena.set_once(3), 'there was room in between'
    arena.clear_once()
    assert arena.set_once(3)
