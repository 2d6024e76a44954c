"Pixels in files: what the next run finds, who else may write, and what nobody can break"
import contextlib, functools, io, os, random, resource, shutil, signal, stat, subprocess, sys, threading, time, traceback

import pytest
from fastai.vision.all import *
from fastmem import pixel_file
from fastmem.all import *
from fastmem.cache import could_make
from fastmem.arena import Arena, checksum, record_dtype
from fastmem.cli import fastmem_cache
from fastmem.pixel_file import *
from helpers import photo, photo_folder, batches, run_command, run_forked, run_program

size = (96,72)

def stock(path, size=32, workers=0, item_tfms=None):
    set_seed(0)
    return ImageDataLoaders.from_folder(path, valid_pct=.2, seed=1, item_tfms=item_tfms or Resize(size), bs=8, num_workers=workers, device='cpu')

def make(path, cache, mode='lazy', guard=None, on_full='partial', **kwargs):
    return stock(path, **kwargs).in_memory(cache=ImageCache(guard, cache), mode=mode, on_full=on_full)  # not the one that another of the test has

def same(a, b): return len(a)==len(b) and all(torch.equal(x, y) for o,p in zip(a, b) for x,y in zip(o, p))

def one_pass(dls):
    "All batches, the same for each pass of each dls"
    set_seed(7)
    for dl in dls.loaders: dl.rng.seed(7)
    return [b for dl in batches(dls)[0] for b in dl]

def spoil(files):
    "Make the sources unreadable, and leave their size and times"
    for o in files:
        t = o.stat()
        o.write_bytes(bytes(t.st_size))
        os.utime(o, ns=(t.st_atime_ns, t.st_mtime_ns))

def the_file(folder):
    "The index"
    path, = folder.glob('fastmem-*.sqlite')
    return path

def the_pixels(folder):
    path, = folder.glob('fastmem-*.pixels')
    return path

# --- the next run ---

second_run = '''
import sys
opened = []
sys.addaudithook(lambda event,args: opened.append(str(args[0])) if event=='open' else None)
from test_pixel_file import *
if __name__=='__main__':
    path,cache,expected = map(Path, sys.argv[1:])
    expected = torch.load(expected, weights_only=False)
    all_dls = {o: stock(path, workers=o) for o in (0,2)}  # fastai itself opens the first image, to see its type
    spoil(get_image_files(path)); opened.clear()
    for workers,dls in all_dls.items():
        dls.in_memory(path=cache)
        assert dls.memory.n_cached==dls.memory.n_items==40, dls.memory
        assert same(one_pass(dls), expected[workers]) and dls.memory.misses==0, dls.memory
        dls.train.cache.check()
    assert not (of_source := [o for o in opened if o.endswith('.jpg')]), of_source
'''

def test_the_second_run_is_warm_and_opens_no_source(tmp_path):
    photo_folder(tmp_path/'photos', 40, size)
    torch.save({w: one_pass(make(tmp_path/'photos', tmp_path/'cache', workers=w)) for w in (0,2)}, tmp_path/'expected')
    run_forked(tmp_path, second_run, tmp_path/'photos', tmp_path/'cache', tmp_path/'expected')

spawned = '''
import torch.multiprocessing as mp, sys
from fastai.vision.all import *
from test_pixel_file import *
if __name__=='__main__':
    mp.set_start_method('spawn')
    path,cache = map(Path, sys.argv[1:])
    dls = make(path, cache, workers=1)
    for b in dls.train: pass
    n = dls.memory.n_cached
    assert n==dls.memory.misses==len(dls.train_ds), dls.memory
    again = stock(path)
    spoil(get_image_files(path))
    dls = again.in_memory(cache=ImageCache(path=cache))
    for b in dls.train: pass
    assert dls.memory.n_cached==n and dls.memory.misses==0, dls.memory
    dls.train.cache.check()
'''

def test_spawned_workers_fill_the_file(tmp_path):
    photo_folder(tmp_path/'photos', 40, size)
    run_forked(tmp_path, spawned, tmp_path/'photos', tmp_path/'cache')

def test_a_changed_source_is_read_again_and_a_deleted_one_is_forgotten(tmp_path):
    files = photo_folder(tmp_path/'photos', 20, size)
    one_pass(make(tmp_path/'photos', tmp_path/'cache'))
    Image.fromarray(np.full((72,96,3), 200, np.uint8)).save(files[3], quality=95)
    files[5].unlink()
    dls = make(tmp_path/'photos', tmp_path/'cache')
    assert (dls.memory.n_cached,dls.memory.n_items)==(18,19)
    cache,column = dls.train.cache,dls.train.columns[0]
    assert same(one_pass(dls), one_pass(make(tmp_path/'photos', None))) and dls.memory.misses==1
    place, = cache.find([files[3]], column.recipe)
    assert abs(np.asarray(cache.read(place, files[3], column.recipe)).astype(int)-200).max()<3
    gone, = cache.add([files[5]], column.recipe)
    with pytest.raises(FileNotFoundError): cache.read(gone, files[5], column.recipe)

def test_another_order_and_another_split_find_the_same_pixels(tmp_path):
    photo_folder(tmp_path/'photos', 20, size)
    one_pass(make(tmp_path/'photos', tmp_path/'cache'))
    files = get_image_files(tmp_path/'photos')[::-1]
    dls = ImageDataLoaders.from_path_func('.', files, parent_label, valid_pct=.5, seed=3, item_tfms=Resize(32), bs=4, num_workers=0, device='cpu')
    dls.in_memory(cache=ImageCache(path=tmp_path/'cache'))
    assert dls.memory.n_cached==20
    one_pass(dls)
    assert dls.memory.misses==0

def test_sources_named_from_another_folder(tmp_path, monkeypatch):
    photo_folder(tmp_path/'photos', 10, size)
    one_pass(make(tmp_path/'photos', tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    assert make(Path('photos'), 'cache').memory.n_cached==10

@pytest.mark.parametrize('tfm', [Resize(32), Resize((24,40)), Resize(32, method='squish'), Resize(32, method='pad', pad_mode='zeros'), CropPad(40)])
def test_each_recipe_has_a_file_of_its_own(tmp_path, tfm):
    photo_folder(tmp_path/'photos', 10, size)
    one_pass(make(tmp_path/'photos', tmp_path/'cache', size=48))
    expected = one_pass(make(tmp_path/'photos', None, item_tfms=tfm))
    one_pass(make(tmp_path/'photos', tmp_path/'cache', item_tfms=tfm))
    dls = make(tmp_path/'photos', tmp_path/'cache', item_tfms=tfm)
    assert dls.memory.n_cached==10 and len(list((tmp_path/'cache').iterdir()))==4
    assert same(one_pass(dls), expected) and dls.memory.misses==0
    dls.train.cache.check()

def test_masks_and_images_of_one_cache(tmp_path):
    files = photo_folder(tmp_path/'photos', 10, size)
    for o in files: Image.open(o).convert('L').point(lambda v: v//64).save(o.with_suffix('.png'))
    def dls_of(path):
        set_seed(0)
        block = DataBlock((ImageBlock, MaskBlock), get_items=lambda _: files, get_y=lambda o: o.with_suffix('.png'), item_tfms=Resize(32))
        return block.dataloaders(tmp_path, bs=4, num_workers=0, device='cpu').in_memory(path=path)
    expected = one_pass(dls_of(None))
    one_pass(dls_of(tmp_path/'cache'))
    dls = dls_of(tmp_path/'cache')
    assert dls.memory.n_cached==20 and same(one_pass(dls), expected) and dls.memory.misses==0
    assert sorted(o.n_items for o in pixel_files(tmp_path/'cache'))==[10,10]

def test_it_is_said_where_the_pixels_are(tmp_path):
    photo_folder(tmp_path/'photos', 10, size)
    dls = make(tmp_path/'photos', tmp_path/'cache')
    assert dls.memory.path==str(tmp_path/'cache') and dls.memory.bound_by=='free disk' and str(tmp_path/'cache') in repr(dls.memory)
    with pytest.raises(ValueError, match='give `path` to the `ImageCache`'): dls.in_memory(cache=ImageCache(), path=tmp_path)

def test_a_budget_of_memory_does_not_bind_the_file(tmp_path):
    "RAM first, then the file: what `limit_bytes` has no room for is decoded once"
    photo_folder(tmp_path/'photos', 40, size)
    dls = make(tmp_path/'photos', tmp_path/'cache', guard=MemoryGuard(limit_bytes=50_000))
    for _ in range(2): one_pass(dls)
    assert dls.memory.cached_bytes>100_000 and (dls.memory.n_cached,dls.memory.misses)==(40,40)

more_than_memory = '''
import sys
open(sys.argv[1]+'/cgroup.procs', 'w').write('0')
from test_pixel_file import *
if __name__=='__main__':
    files = get_image_files(sys.argv[2])
    (links := Path(sys.argv[2])/'many').mkdir()
    for i in range(800): (links/f'{i}.jpg').hardlink_to(files[i%len(files)])
    def decoded(path): return ImageDataLoaders.from_folder(path, valid_pct=.2, seed=1, item_tfms=RandomResizedCrop(64), bs=16, num_workers=2, device='cpu')
    dls = decoded(links).in_memory(path=sys.argv[3])
    for _ in range(2): one_pass(dls)
    m = dls.memory
    assert m.n_cached==m.misses==m.hits==800 and m.cached_bytes>300_000_000, m
    print(m)
'''

def test_a_file_larger_than_memory(tmp_path, cgroup):
    "fastai leaves some 170 MB of 700; 360 MB of pixels are decoded once, and nobody is killed"
    photo_folder(tmp_path/'photos', 20)
    assert 'fastmem:' not in run_program(tmp_path, more_than_memory, cgroup(700_000_000), tmp_path/'photos', tmp_path/'cache')
    shutil.rmtree(tmp_path/'cache')

# --- purge ---

def test_purge_gives_the_disk_back_and_others_notice(tmp_path):
    photo_folder(tmp_path/'photos', 40, size)
    mine,other = [make(tmp_path/'photos', tmp_path/'cache', mode=o) for o in ('preload','lazy')]
    other = make(tmp_path/'photos', tmp_path/'cache')
    expected = one_pass(other)
    assert other.memory.misses==0 and mine.memory.cached_bytes>=40*32*32*3
    given_back_bytes = mine.purge()
    assert given_back_bytes>=.9*mine.train.cache.arena.sizes[:40,:2].prod(1).sum()*3 and the_pixels(tmp_path/'cache').stat().st_blocks==0
    assert mine.purge()==0
    assert same(one_pass(other), expected) and other.memory.misses==40
    assert make(tmp_path/'photos', tmp_path/'cache').memory.n_cached==40, 'what was read again is there again'
    for o in (mine,other): o.train.cache.check()

def test_what_is_written_into_a_file_that_was_purged_meanwhile_is_not_used(tmp_path, monkeypatch):
    "By a slow writer, in the same arena or in another one"
    (arena,file),(other,same) = small_arena(tmp_path),small_arena(tmp_path)
    keep(file, 1)
    written = pixel_file.write_all
    def slow(*args): written(*args); monkeypatch.setattr(pixel_file, 'write_all', written); same.purge()
    monkeypatch.setattr(pixel_file, 'write_all', slow)
    keep(file, 0)
    file.flush(); file.sync()
    assert not arena.ready(np.arange(2)).any() and not small_arena(tmp_path)[0].ready(np.arange(2)).any()
    assert keep(file, 0) and is_true(arena, 0)
    arena.check()

# --- several at once ---

def in_child(f, *args):
    "Start `f` in a process of its own; its id"
    if (pid := os.fork()): return pid
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    try: f(*args); os._exit(0)
    except BaseException: traceback.print_exc(file=sys.__stderr__); os._exit(9)

def ended_well(pid): return os.waitpid(pid, 0)[1]==0

def fill(path, cache, workers, start_s):
    dls = make(path, cache, workers=workers)
    time.sleep(max(0, start_s-time.time()))
    for _ in range(2): one_pass(dls)
    dls.preload()
    assert dls.memory.n_cached==120, dls.memory
    dls.train.cache.check()

@pytest.mark.parametrize('workers', [0,2])
def test_two_processes_fill_one_file(tmp_path, workers):
    photo_folder(tmp_path/'photos', 120, (240,180))
    both = [in_child(fill, tmp_path/'photos', tmp_path/'cache', workers, time.time()+1) for _ in range(2)]
    assert all([ended_well(o) for o in both])
    dls = make(tmp_path/'photos', tmp_path/'cache')
    assert dls.memory.n_cached==120
    assert same(one_pass(dls), one_pass(make(tmp_path/'photos', None))) and dls.memory.misses==0
    dls.train.cache.check()

def test_what_another_process_has_kept_meanwhile_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(PixelFile, 'flush_rows', 4)
    a,b = [small_arena(tmp_path) for _ in range(2)]
    for i in range(20): keep(a[1], i)
    for i in range(20,24): keep(b[1], i)
    assert b[0].ready(np.arange(24)).all() and all(is_true(b[0], i) for i in range(24))

# --- killed ---

n_places = 400
recipe = Recipe(size=(16,16), method='squish')

def true_pixels(i): return np.random.default_rng(i).integers(0, 256, (3,16,16), dtype=np.uint8)
def true_extras(i): return b'' if i%3 else bytes([i%256])*(i%7+1)

def small_arena(folder, n=n_places):
    "(arena, file) with slots 0 to n-1 of made-up sources"
    arena = Arena(MemoryGuard())
    slots = arena.add(np.random.default_rng(0).integers(1, 1<<63, (n,2)).astype(np.uint64))
    arena.set_stamps(slots, 7)
    file = PixelFile(arena, folder, '{}', functools.partial(could_make, recipe))
    file.sync(again=True)
    return arena,file

def keep(file, i): return file.write(i, true_pixels(i), (99,88), 1, stamp=7, extras=true_extras(i))

def is_true(arena, i):
    slot = arena.slot(i)
    return np.array_equal(arena.view(slot, 3), true_pixels(i)) and arena.extras(i)==true_extras(i)

def fill_until_killed(folder):
    arena,file = small_arena(folder)
    rng = random.Random(os.getpid())
    while True:
        for i in rng.sample(range(n_places), 100):
            if arena.slot(i) is None: assert keep(file, i)
            elif rng.random()<.02: file.purge()

def killed_child(f, *args, after_s):
    pid = in_child(f, *args)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

n_kills,n_mutations = [int(os.environ.get(f'FASTMEM_{o}', n)) for o,n in dict(KILLS=12, MUTATIONS=100).items()]

def test_killed_at_random_points(tmp_path, monkeypatch, capsys):
    "Every file opens, and what it says to have is right, looked at in the pixels themselves; two write at a time"
    monkeypatch.setattr(PixelFile, 'chunk_bytes', 16_000)
    monkeypatch.setattr(PixelFile, 'flush_rows', 5)
    rng,counts = random.Random(0),[]
    for k in range(n_kills):
        folder = tmp_path/str(k//20)
        other = in_child(fill_until_killed, folder)
        assert killed_child(fill_until_killed, folder, after_s=.02+rng.random()*.08)==signal.SIGKILL
        os.kill(other, signal.SIGKILL); os.waitpid(other, 0)
        arena,file = small_arena(folder)
        ready = np.flatnonzero(arena.ready(np.arange(n_places)))
        arena.modes[ready] &= 0x7f # not by their checksums
        assert all(is_true(arena, i) for i in ready), k
        arena.check()
        assert len(os.listdir(folder)) in (2,3) # and perhaps a journal
        counts.append(len(ready))
    assert len(set(counts))>n_kills//4 and max(counts)>20, counts
    assert 'anew' not in capsys.readouterr().out

def test_purged_by_another_while_it_is_opened(tmp_path, monkeypatch):
    "The index named a file of pixels that is gone by the time it is mapped: it names another by then"
    from fastmem import pixel_file
    other,opened = small_arena(tmp_path)[1],pixel_file.open_index
    def open_index(*args):
        res = opened(*args)
        monkeypatch.setattr(pixel_file, 'open_index', opened)
        other.purge()
        return res
    monkeypatch.setattr(pixel_file, 'open_index', open_index)
    arena,file = small_arena(tmp_path)
    assert keep(file, 0) and is_true(arena, 0)

def test_killed_with_the_lock(tmp_path):
    arena,file = small_arena(tmp_path)
    def hold():
        with file.index.transaction() as con: con.execute('delete from meta'); time.sleep(60)
    killed_child(hold, after_s=.2)
    assert keep(file, 0)
    file.flush()
    assert is_true(small_arena(tmp_path)[0], 0)

def test_a_fork_does_not_use_the_connection_of_its_parent(tmp_path):
    "Nor write the rows that are its parent's"
    arena,file = small_arena(tmp_path)
    keep(file, 0)
    def write(): keep(file, 1); file.flush()
    def hold():
        with file.index.transaction(): held.set(); time.sleep(.2)
    held,holder = threading.Event(),threading.Thread(target=hold)
    holder.start(); held.wait()
    pid = in_child(write)
    holder.join()
    assert ended_well(pid)
    file.flush()
    again = small_arena(tmp_path)[0]
    assert again.ready(np.arange(3)).tolist()==[True,True,False] and is_true(again, 0) and is_true(again, 1)
    with file.index.transaction('deferred') as con: assert con.execute('select count(*) from images').fetchone()==(2,)

def test_what_lies_beyond_the_address_space_is_read_from_its_source(tmp_path, monkeypatch):
    "A file that was written without `ulimit -v`, opened with it"
    monkeypatch.setattr(PixelFile, 'chunk_bytes', 1024)
    file = small_arena(tmp_path)[1]
    for i in range(n_places): keep(file, i)
    file.flush()
    monkeypatch.setattr(Arena, '_span', lambda self, path: 1<<17)
    monkeypatch.setattr('fastmem.arena._least_span', 1<<17)
    arena,file = small_arena(tmp_path)
    ready = np.flatnonzero(arena.ready(np.arange(n_places)))
    assert 50<len(ready)<n_places and all(is_true(arena, i) for i in ready)
    assert not keep(file, n_places-1) and arena.is_full

# --- damaged ---

def sample_file(folder, n=12):
    "The bytes of the index and of the pixels of `n` images"
    file = small_arena(folder)[1]
    file.chunk_bytes = 4096
    for i in range(n): assert keep(file, i)
    file.flush()
    return the_file(folder).read_bytes(),the_pixels(folder).read_bytes()

def mutated(data, rng):
    "A copy of `data` with one to four places of it overwritten, now and then cut"
    res = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        value = rng.choice([rng.randbytes(1), rng.randbytes(8), bytes(8), b'\xff'*8, (1<<rng.randint(0,63)).to_bytes(8, 'little'),
                            rng.randint(0,1<<14).to_bytes(4, 'little')])
        at = rng.choice([rng.randrange(0, 120), rng.randrange(len(data))])
        res[at:at+len(value)] = value
    return res[:rng.randrange(len(res))] if rng.random()<.1 else res

def use_file(folder):
    "Read all that the file in `folder` says to have, write, purge and write again"
    arena,file = small_arena(folder)
    ready = np.arange(n_places)
    arena.verify(ready)
    ready = ready[arena.ready(ready)]
    assert all(is_true(arena, i) for i in ready)
    for i in (20,21):
        assert not keep(file, i) or is_true(arena, i)
        file.flush(); arena.check(); pixel_files(folder)
        file.purge()
    return len(ready)

def peak_bytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024

def use_mutants(folder, data):
    "Open indexes and pixels that are other than what was written, or cut"
    rng,names,n_found = random.Random(2),(the_file(folder),the_pixels(folder)),Counter()
    with contextlib.redirect_stdout(io.StringIO()):
        for k in range(n_mutations):
            for o in folder.iterdir(): o.unlink()
            for path,o in zip(names, data): path.write_bytes(mutated(o, rng) if rng.random()<.7 else o)
            n_found[use_file(folder)] += 1
            if k==10: before_bytes = peak_bytes()
    assert peak_bytes()-before_bytes<60e6
    assert n_found[0] and len(n_found)>4, n_found

def as_text_that_is_none(index): return index.replace(b'CREATE TABLE images', b'CRE\xacTE TABLE images')
def as_read_only(index): return index[:18]+bytes([9])+index[19:] # the version that writers have to know

@pytest.mark.parametrize('spoilt', [as_text_that_is_none,as_read_only])
def test_an_index_that_sqlite_refuses_is_made_anew(tmp_path, spoilt):
    index,pixels = sample_file(tmp_path)
    the_file(tmp_path).write_bytes(spoilt(index))
    assert use_file(tmp_path)==0

def test_mutated_and_cut_files_do_no_harm(tmp_path):
    "No process is killed by them, and what is shown is what was written"
    assert ended_well(in_child(use_mutants, tmp_path, sample_file(tmp_path)))

def spoilt_index(folder, *statements):
    with contextlib.closing(__import__('sqlite3').connect(the_file(folder))) as con:
        for o in statements: con.execute(*o)
        con.commit()

@pytest.mark.parametrize('statement', [('update meta set next_byte=1e300',), ('update meta set next_byte=-1',), ('update meta set next_byte=1<<60',),
    ('update meta set pixels="../diary"',), ('update meta set pixels=null',), ('update meta set recipe=zeroblob(100000000)',), ('delete from meta',),
    ('insert into meta select * from meta',), ('drop table images',), ('pragma user_version=9',), ('pragma application_id=1',)], ids=lambda o: o[0][:40])
def test_an_index_that_says_what_can_not_be_is_made_anew(tmp_path, capsys, statement):
    sample_file(tmp_path)
    (diary := tmp_path.parent/'diary').write_text('Dear diary')
    spoilt_index(tmp_path, statement)
    before_bytes = peak_bytes()
    assert use_file(tmp_path)==0 and str(the_file(tmp_path)) in capsys.readouterr().out
    assert diary.read_text()=='Dear diary' and peak_bytes()-before_bytes<350e6

@pytest.mark.parametrize('statement', [('update images set record=zeroblob(48)',), ('update images set record="a text"',), ('update images set record=null',),
    ('update images set record=zeroblob(1000)',), ('update images set record=(select record from images where id=1)',), ('delete from images',)], ids=lambda o: o[0][18:])
def test_rows_that_can_not_be_are_left_out(tmp_path, statement):
    sample_file(tmp_path)
    spoilt_index(tmp_path, statement)
    assert use_file(tmp_path)<=1

def test_an_enemy_who_knows_the_format_shows_no_pixels_from_elsewhere(tmp_path):
    "Records with the offset, the size or the digest of another, of which checksums know"
    sample_file(tmp_path)
    with contextlib.closing(__import__('sqlite3').connect(the_file(tmp_path))) as con:
        records = np.frombuffer(b''.join(o for o, in con.execute('select record from images order by id')), record_dtype).copy()
        records['offset'][:4] = records['offset'][1:5][::-1]
        records['digest'][4] = records['digest'][11]
        records['offset'][5] = 1<<62; records['size'][6] = 0xffffffff; records['offset'][7] += 64; records['mode'][8] |= 0x40
        for i,o in enumerate(records): con.execute('update images set record=? where id=?', (o.tobytes(), i+1))
        con.commit()
    assert use_file(tmp_path)<=6

def use_cut(photos, cache):
    dls = make(photos, cache, mode='preload')
    expected = one_pass(dls)
    for share in (.5, .1, 0):
        pixels = the_pixels(cache)
        os.truncate(pixels, int(share*dls.memory.cached_bytes))
        with contextlib.redirect_stdout(io.StringIO()) as out: assert same(one_pass(dls), expected)
        assert f'{pixels}: it was cut short' in out.getvalue() and dls.memory.n_cached<40
        dls.train.cache.check(); dls.purge(); dls.preload()

def test_a_file_that_is_cut_while_it_is_mapped(tmp_path):
    photo_folder(tmp_path/'photos', 40, size)
    assert ended_well(in_child(use_cut, tmp_path/'photos', tmp_path/'cache'))

@pytest.mark.parametrize('spoilt', ['text','empty head','cut','link','folder','pipe','pixels gone','pixels a link'])
def test_what_is_not_as_it_should_be_is_refused_by_name_and_made_anew(tmp_path, capsys, spoilt):
    photo_folder(tmp_path/'photos', 10, size)
    expected = one_pass(make(tmp_path/'photos', tmp_path/'cache'))
    path,pixels,diary = the_file(tmp_path/'cache'),the_pixels(tmp_path/'cache'),tmp_path/'diary'
    data = path.read_bytes(); diary.write_text('Dear diary')
    (pixels if 'pixels' in spoilt else path).unlink()
    if spoilt=='text': path.write_text('Dear diary')
    if spoilt=='empty head': path.write_bytes(data[:16]+bytes(52)+data[68:72]+bytes(5000))
    if spoilt=='cut': path.write_bytes(data[:len(data)//2])
    if spoilt=='link': path.symlink_to(diary)
    if spoilt=='folder': path.mkdir()
    if spoilt=='pipe': os.mkfifo(path)
    if spoilt=='pixels a link': pixels.symlink_to(diary)
    capsys.readouterr()
    dls = make(tmp_path/'photos', tmp_path/'cache')
    assert str(path) in capsys.readouterr().out
    assert dls.memory.n_cached==0 and same(one_pass(dls), expected)
    assert make(tmp_path/'photos', tmp_path/'cache').memory.n_cached==10
    assert diary.read_text()=='Dear diary' and path.stat().st_mode==stat.S_IFREG|0o600
    ours = spoilt in ('empty head','cut','pixels gone')
    assert len(list((tmp_path/'cache').iterdir()))==(2 if ours else 3), 'what is not ours is kept'

def test_the_old_format_is_refused_by_name_and_left_where_it_is(tmp_path, capsys):
    photo_folder(tmp_path/'photos', 10, size)
    (tmp_path/'cache').mkdir(); (old := tmp_path/'cache'/'fastmem-66996bfffa1a7b5d.fmc').write_bytes(b'fastmem\n'+bytes(5000))
    dls = make(tmp_path/'photos', tmp_path/'cache')
    said = capsys.readouterr().out
    assert said.count('fastmem:')==1 and str(old) in said and 'earlier version' in said
    one_pass(dls)
    assert dls.memory.n_cached==10 and old.stat().st_size==5008
    make(tmp_path/'photos', tmp_path/'cache')
    assert capsys.readouterr().out==''
    fastmem_cache('ls', tmp_path/'cache')
    assert old.name in capsys.readouterr().out
    fastmem_cache('rm', tmp_path/'cache')
    assert not list((tmp_path/'cache').iterdir())

def test_damaged_pixels_are_read_again(tmp_path, capsys):
    photo_folder(tmp_path/'photos', 10, size)
    expected = one_pass(make(tmp_path/'photos', tmp_path/'cache'))
    with open(the_pixels(tmp_path/'cache'), 'r+b') as f: f.seek(100); value = f.read(1); f.seek(100); f.write(bytes([value[0]^1]))
    dls = make(tmp_path/'photos', tmp_path/'cache')
    assert same(one_pass(dls), expected) and dls.memory.misses==1
    assert 'damaged' in capsys.readouterr().out
    dls.train.cache.check()

# --- the disk ---

@pytest.fixture
def small_disk(tmp_path):
    "A disk of 1 MB"
    (tmp_path/'disk').mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', tmp_path/'disk'], capture_output=True).returncode:
        pytest.skip('this machine does not let us mount a tmpfs')
    yield tmp_path/'disk'
    subprocess.run(['umount', '-l', tmp_path/'disk'], check=True)

@pytest.mark.parametrize('workers', [0,2])
def test_a_full_disk_is_an_ordinary_fall_back(tmp_path, small_disk, capsys, workers):
    photo_folder(tmp_path/'photos', 60, (300,225))
    expected = one_pass(make(tmp_path/'photos', None, size=128, workers=workers))
    dls = make(tmp_path/'photos', small_disk/'cache', size=128, workers=workers)
    assert 'free disk leaves' in capsys.readouterr().out
    for _ in range(2): assert same(one_pass(dls), expected)
    assert 5<dls.memory.n_cached<30 and dls.memory.bound_by=='free disk'
    n_next_run = make(tmp_path/'photos', small_disk/'cache', size=128).memory.n_cached
    assert 0<=dls.memory.n_cached-n_next_run<=2, 'but for an image a process, whose row in the index found no room'
    dls.purge()
    assert dls.memory.budget_bytes>900_000
    dls.train.cache.check()

def test_a_disk_that_others_fill_while_it_grows(tmp_path, small_disk, capsys):
    "The kernel says that there is no room in the middle of a chunk"
    photo_folder(tmp_path/'photos', 60, (300,225))
    expected = one_pass(make(tmp_path/'photos', None, size=64))
    dls = make(tmp_path/'photos', small_disk/'cache', size=64)
    dls.one_batch()
    with open(small_disk/'hog', 'wb', buffering=0) as f, contextlib.suppress(OSError):
        while True: f.write(bytes(4096))
    assert same(one_pass(dls), expected)
    assert 0<dls.memory.n_cached<60 and 'out of disk space (free disk)' in capsys.readouterr().out
    assert make(tmp_path/'photos', small_disk/'cache', size=64).memory.n_cached<=dls.memory.n_cached
    dls.train.cache.check()

def test_a_plan_that_does_not_fit_the_disk_can_be_raised(tmp_path, small_disk):
    photo_folder(tmp_path/'photos', 60, (300,225))
    with pytest.raises(MemoryError, match='free disk'): make(tmp_path/'photos', small_disk/'cache', size=128, on_full='raise')

def test_a_folder_that_is_removed_while_it_is_in_use(tmp_path):
    "The open file goes on, and so does all that asks how much room there is"
    photo_folder(tmp_path/'photos', 10, size)
    dls = make(tmp_path/'photos', tmp_path/'new'/'cache')
    expected = one_pass(dls)
    shutil.rmtree(tmp_path/'new')
    assert dls.memory.budget_bytes>0 and 'budget' in str(dls.train.cache.plan()) and dls.train.cache.guard.budget()>0
    assert same(one_pass(dls), expected) and dls.memory.misses==10
    Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(32*32*3, 3)), cbs=MemoryCallback()).fit(1)
    dls.purge()
    assert same(one_pass(dls), expected) and dls.memory.n_cached==10

def test_a_folder_that_is_not_there_yet_has_a_budget(tmp_path):
    assert ImageCache(path=tmp_path/'a'/'b').guard.budget()>0 and not (tmp_path/'a').exists()

@pytest.mark.parametrize('workers,uid', [(0,None),(2,None),(0,1234)], ids=['here','workers','of another'])
def test_a_read_only_folder_is_used_as_it_is(tmp_path, small_disk, capsys, workers, uid):
    "As input data of Kaggle: 20 images are in it, and one that is new comes from its source each time"
    photo_folder(tmp_path/'photos', 20, size)
    expected = one_pass(make(tmp_path/'photos', small_disk/'cache', workers=workers))
    before = [o.read_bytes() for o in sorted((small_disk/'cache').iterdir())]
    if uid: [os.chown(o, uid, uid) for o in (small_disk/'cache').iterdir()]
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    capsys.readouterr()
    dls = make(tmp_path/'photos', small_disk/'cache', workers=workers)
    assert capsys.readouterr().out.count('is read-only')==1
    assert dls.memory.n_cached==20 and dls.memory.budget_bytes==0 and same(one_pass(dls), expected) and dls.memory.misses==0
    dls.train.cache.check()
    photo(20, size).save(tmp_path/'photos'/'a'/'020.jpg')
    dls = make(tmp_path/'photos', small_disk/'cache', workers=workers)
    dls.preload()
    assert (dls.memory.n_cached,dls.memory.n_items)==(20,21) and len(one_pass(dls))==3
    dls.train.cache.check()
    assert dls.purge()==0 and len(one_pass(dls))==3 and [o.read_bytes() for o in sorted((small_disk/'cache').iterdir())]==before
    fastmem_cache('ls', small_disk/'cache')
    with pytest.raises(SystemExit, match='Read-only'): fastmem_cache('rm', small_disk/'cache')

def test_a_read_only_folder_without_a_file_is_refused(tmp_path, small_disk):
    photo_folder(tmp_path/'photos', 4, size)
    (small_disk/'cache').mkdir()
    (small_disk/'damaged').mkdir(); (small_disk/'damaged'/pixel_file.file_name('{}')).write_text('Dear diary')
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    for o,why in dict(cache='is not there', new="can't be made").items():
        with pytest.raises(PermissionError, match=f'{small_disk/o}.*{why}.*a folder that you may write to'): make(tmp_path/'photos', small_disk/o)
    with pytest.raises(PermissionError, match=f'{small_disk/"damaged"}.*be used as it is.*a folder that you may write to'): small_arena(small_disk/'damaged')

def test_a_path_that_is_no_folder_is_refused(tmp_path):
    photo_folder(tmp_path/'photos', 10, size)
    (tmp_path/'a_file').write_text('x'); (tmp_path/'dangling').symlink_to(tmp_path/'nothing'); (tmp_path/'folder').mkdir(); (tmp_path/'link').symlink_to(tmp_path/'folder')
    for o in ('a_file','dangling','a_file/below'):
        with pytest.raises(NotADirectoryError, match=f'{tmp_path/o} is no folder: give `path`'): make(tmp_path/'photos', tmp_path/o)
    assert (tmp_path/'a_file').read_text()=='x' and len(one_pass(make(tmp_path/'photos', tmp_path/'link')))==2

def test_what_is_in_the_file_already_fits(tmp_path, small_disk):
    "Though the disk has no room for it a second time"
    photo_folder(tmp_path/'photos', 40, size)
    dls = make(tmp_path/'photos', small_disk/'cache', mode='preload', size=64)
    with contextlib.suppress(OSError), open(small_disk/'other', 'wb', buffering=0) as f:
        while True: f.write(bytes(4096))
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64*64*3, 3)))
    assert dls.memory.n_cached==40 and learn.memory_plan(n_steps=1, n_timed=0).fits

def test_only_the_owner_may_read_it(tmp_path):
    photo_folder(tmp_path/'photos', 4, size)
    old = os.umask(0)
    try: make(tmp_path/'photos', tmp_path/'cache')
    finally: os.umask(old)
    assert stat.S_IMODE(the_file(tmp_path/'cache').stat().st_mode)==0o600 and stat.S_IMODE((tmp_path/'cache').stat().st_mode)==0o700
    the_file(tmp_path/'cache').chmod(0o644)
    make(tmp_path/'photos', tmp_path/'cache')
    assert stat.S_IMODE(the_file(tmp_path/'cache').stat().st_mode)==0o600

# --- fastmem-cache ---

def test_ls_and_rm(tmp_path, capsys):
    photo_folder(tmp_path/'photos', 10, size)
    dls = make(tmp_path/'photos', tmp_path/'cache')
    expected,mine = one_pass(dls),the_file(tmp_path/'cache')
    others = [tmp_path/'cache'/o for o in ('fastmem-of-another.sqlite','notes.txt','fastmem-link.sqlite')]
    others[0].write_text('not ours'); others[1].write_bytes(mine.read_bytes()); others[2].symlink_to(mine)
    (tmp_path/'cache'/'fastmem-hurt.sqlite').write_bytes(mine.read_bytes()[:4096])
    run = lambda what: (fastmem_cache(what, tmp_path/'cache'), capsys.readouterr().out)[1]
    out = run('ls')
    assert mine.name in out and 'PILImage' in out and '32x32' in out and ' 10 ' in out
    assert 'fastmem-hurt.sqlite' in out and 'damaged' in out and not any(o.name in out for o in others)
    assert mine.name in run('rm') and not mine.exists()
    assert sorted(o.name for o in (tmp_path/'cache').iterdir())==sorted(o.name for o in others)
    assert 'no pixel files' in run('ls')
    assert same(one_pass(dls), expected) and dls.memory.misses==10, 'who has the file open goes on with it'

def test_a_wrong_folder_is_one_line(tmp_path):
    (tmp_path/'a_file').write_text('x'); (tmp_path/'dangling').symlink_to(tmp_path/'nothing')
    for o in ('nowhere','a_file','dangling'):
        out = run_command(tmp_path, 'fastmem-cache', 'ls', tmp_path/o, status=1)
        assert f'fastmem-cache: no folder {tmp_path/o}' in out.splitlines()[-1] and 'Traceback' not in out

@pytest.mark.parametrize('text', ['[1]','null','{"size":5}','{"size":["a",2]}','{"cls":3}','{"method":[]}','{"cls":"a.\\u001b[2J"}','['*1900,'{"a":'*300,'9'*1900,'NaN','{'],
                         ids=lambda o: o[:12])
def test_a_hostile_recipe_is_listed_and_removed(tmp_path, capsys, text):
    index = Index(tmp_path/'fastmem-x.sqlite')
    pixel_file._make_index(index, text)
    fastmem_cache('ls', tmp_path)
    assert 'fastmem-x.sqlite' in (out := capsys.readouterr().out) and 'no recipe' in out and '\x1b' not in out
    fastmem_cache('rm', tmp_path)
    assert not list(tmp_path.iterdir())

def test_a_source_that_changes_while_it_is_in_use_is_read_again(tmp_path):
    "And the next cache finds what it is now"
    files = photo_folder(tmp_path/'a', 12, size=(60,50))
    make_dls = lambda bs: ImageDataLoaders.from_folder(tmp_path/'a', valid_pct=.25, seed=1, item_tfms=Resize(32), bs=bs, num_workers=0, device='cpu')
    dls = make_dls(4).in_memory(path=tmp_path/'cache', mode='preload')
    changed = dls.train_ds.items[1]
    Image.new('RGB', (60,50), (255,0,0)).save(changed)
    def is_red(dls): return next(iter(dls.train.new(shuffle=False)))[0][1].mean((1,2))[0]>.9
    assert not is_red(dls) and dls.memory.check()==[str(changed)]
    assert dls.refresh()==[str(changed)] and is_red(dls) and dls.memory.check()==[]
    again = make_dls(8).in_memory(cache=ImageCache(path=tmp_path/'cache'))
    assert again.memory.n_cached==len(files) and is_red(again) and again.memory.misses==0

def test_one_folder_holds_many_sizes(tmp_path):
    "Each has a file, and a part of the address space that its disk could fill"
    photo_folder(tmp_path/'images', 4, size=(60,50))
    cache = ImageCache(MemoryGuard(), path=tmp_path/'pixels')
    for size in range(16, 40):
        dls = ImageDataLoaders.from_folder(tmp_path/'images', valid_pct=.5, bs=2, item_tfms=Resize(size), num_workers=0, device='cpu').in_memory(cache=cache, mode='preload')
        assert dls.memory.cached_frac==1
    assert len(list((tmp_path/'pixels').iterdir()))==48
    cache.check()

# --- what an acceptance check found ---

@pytest.mark.parametrize('workers', [0,2])
def test_a_file_that_changes_before_it_is_read_is_found_by_what_was_read(tmp_path, workers):
    "And one that is then put back, with its old time, is not shown as what it was meanwhile"
    files = photo_folder(tmp_path/'photos', 10, size)
    def fresh(): return stock(tmp_path/'photos', workers=workers).in_memory(cache=ImageCache(path=tmp_path/'cache'))
    dls,changed = fresh(),files[3]
    changed.rename(tmp_path/'aside')
    Image.new('RGB', size, (255,0,0)).save(changed)
    red = one_pass(dls)
    assert (again := fresh()).memory.n_cached==10 and same(one_pass(again), red)
    (tmp_path/'aside').rename(changed)
    back = fresh()
    assert back.memory.n_cached==9 and same(one_pass(back), one_pass(stock(tmp_path/'photos', workers=workers).in_memory(store='resized', cache=ImageCache()))) and back.memory.misses==1

def test_a_disk_that_is_full_from_the_start_is_streamed_past(tmp_path, small_disk, capsys):
    photo_folder(tmp_path/'photos', 10, size)
    wanted = one_pass(make(tmp_path/'photos', tmp_path/'cache'))
    with contextlib.suppress(OSError): (small_disk/'filler').write_bytes(bytes(2_000_000))
    for folder in (small_disk, small_disk/'new'):
        dls = make(tmp_path/'photos', folder)
        assert same(one_pass(dls), wanted) and dls.memory.n_cached==0 and dls.memory.bound_by=='free disk'
        assert 'free disk' in capsys.readouterr().out
        dls.train.cache.check()
    (small_disk/'filler').unlink()
    dls = make(tmp_path/'photos', small_disk)
    assert same(one_pass(dls), wanted)

@pytest.mark.skipif(os.geteuid()!=0, reason='only root can be another user')
def test_a_file_of_another_user_in_a_folder_for_all_is_put_aside(tmp_path):
    tmp_path.chmod(0o777)
    for o in tmp_path.parents[:-1]:
        if o!=Path('/tmp'): o.chmod(o.stat().st_mode|0o111)
    path = tmp_path/file_name('{}')
    path.write_bytes(b'of root'); path.chmod(0o600)
    arena = Arena(MemoryGuard())
    pid = os.fork()
    if pid==0:
        code = 1
        try:
            os.setgid(65534); os.setuid(65534)
            PixelFile(arena, tmp_path, '{}', lambda o: o['offset']>=0); code = 0
        except BaseException: traceback.print_exc()
        finally: os._exit(code)
    assert os.waitpid(pid, 0)[1]==0 and path.stat().st_uid==65534
    assert [o.read_bytes() for o in tmp_path.glob('*.refused')]==[b'of root']

def test_a_damaged_file_is_not_called_a_full_disk(tmp_path, capsys):
    photo_folder(tmp_path/'photos', 40, size)
    dls = make(tmp_path/'photos', tmp_path/'cache')
    it = iter(dls.train); next(it)
    os.truncate(the_pixels(tmp_path/'cache'), 5000)
    for _ in range(2): one_pass(dls)
    out = capsys.readouterr().out
    assert 'cut short' in out and 'out of disk space' not in out

def test_a_file_that_was_removed_is_not_gone_on_with(tmp_path):
    photo_folder(tmp_path/'photos', 10, size)
    def in_file(folder): return stock(tmp_path/'photos').in_memory('preload', path=folder)
    dls = in_file(tmp_path/'cache')
    assert in_file(tmp_path/'cache').train.cache is dls.train.cache
    the_file(tmp_path/'cache').unlink()
    again = in_file(tmp_path/'cache')
    assert dls.memory.n_cached==again.memory.n_cached==10 and the_pixels(tmp_path/'cache').stat().st_size>10*32*32*3
    with pytest.raises(ValueError, match="path='' is no folder"): in_file('')

# --- a tmpfs is memory; what is given back is used again ---

in_shm = '''
import sys
open(sys.argv[1]+'/cgroup.procs', 'w').write('0')
from test_pixel_file import *
if __name__=='__main__':
    files = get_image_files(sys.argv[2])
    (links := Path(sys.argv[2])/'many').mkdir()
    for i in range(1600): (links/f'{i}.jpg').hardlink_to(files[i%len(files)])
    dls = ImageDataLoaders.from_folder(links, valid_pct=.2, seed=1, item_tfms=RandomResizedCrop(64), bs=16, num_workers=0, device='cpu').in_memory(path=sys.argv[3])
    for _ in range(2): one_pass(dls)
    m = dls.memory
    assert 0<m.n_cached<m.n_items and 'cgroup' in m.bound_by, m
    dls.purge()
'''

def test_a_file_in_ram_is_bounded_by_memory(tmp_path, cgroup):
    "720 MB of pixels in /dev/shm, in a group of 850 MB of which fastai takes 530"
    photo_folder(tmp_path/'photos', 20)
    folder = Path('/dev/shm')/tmp_path.name
    try: out = run_program(tmp_path, in_shm, cgroup(850_000_000), tmp_path/'photos', folder)
    finally: shutil.rmtree(folder, ignore_errors=True)
    assert out.count('fastmem:')-out.count('given back')==1, 'what is given back later is told, too'

def test_a_file_in_ram_is_given_back(tmp_path, small_disk):
    photo_folder(tmp_path/'photos', 20, size)
    guard = MemoryGuard()
    dls = make(tmp_path/'photos', small_disk/'cache', guard=guard, mode='preload')
    expected,held_bytes = one_pass(dls),dls.memory.cached_bytes
    assert guard.used_bytes>=held_bytes>0
    assert guard.give_back(1000)>=.9*held_bytes and dls.memory.n_cached==0
    assert same(one_pass(dls), expected)
    dls.preload()
    assert dls.memory.n_cached==20
    on_disk = make(tmp_path/'photos', tmp_path/'cache', guard=MemoryGuard(), mode='preload')
    assert on_disk.train.cache.guard.guard.give_back(1000)==0 and on_disk.memory.n_cached==20, 'what is on a disk is let be'

def test_a_purge_uses_up_no_disk(tmp_path, small_disk):
    photo_folder(tmp_path/'photos', 40, (300,225))
    dls = make(tmp_path/'photos', small_disk/'cache', size=64, mode='preload')
    for _ in range(12):
        assert dls.memory.n_cached==40
        dls.purge(); dls.preload()
    assert make(tmp_path/'photos', small_disk/'cache', size=64).memory.n_cached==40
    dls.train.cache.check()

@pytest.mark.parametrize('workers', [0,2])
def test_names_that_are_no_files_are_said_not_to_be_kept(tmp_path, capfd, workers):
    "Frames of a video by 'file:number' for instance"
    np.save(tmp_path/'video.npy', np.random.default_rng(0).integers(0, 255, (10,40,60,3), dtype=np.uint8))
    block = DataBlock((ImageBlock(Frame), CategoryBlock), get_y=lambda o: 'a', splitter=RandomSplitter(.5, seed=1), item_tfms=Resize(16))
    make = lambda: block.dataloaders([f'{tmp_path}/video.npy:{i}' for i in range(10)], bs=5, num_workers=workers, device='cpu')
    in_file = make().in_memory(path=tmp_path/'cache')
    for _ in range(2): one_pass(in_file)
    said = capfd.readouterr().out
    assert in_file.memory.n_cached==0 and said.count('fastmem:')==1 and 'video.npy:' in said and 'Leave `path` out' in said
    in_memory = make().in_memory()
    one_pass(in_memory)
    assert in_memory.memory.n_cached==10 and 'fastmem:' not in capfd.readouterr().out

class Frame(PILImage):
    @classmethod
    def create(cls, fn, **kwargs):
        file,_,i = str(fn).rpartition(':')
        return cls(Image.fromarray(np.load(file, mmap_mode='r')[int(i)]))
