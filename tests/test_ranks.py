"Ranks that a real launcher starts: one copy of the pixels for all of them, and the batches that stock has"
import contextlib, itertools, json, os, re, socket, subprocess, sys, tempfile
from pathlib import Path

import psutil

import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem.ranks import *
from helpers import environ, photo_folder, run_forked
from test_pressure import by_content as by_value
from test_processes import by_content

def launch(tmp_path, code, n, n_agents=1, timeout_s=300):
    "What ranks print that run `code`, `n` of each of some agents of `torchrun`; all have to end well"
    program,port = tmp_path/'program.py',free_port()
    program.write_text(setup+code)
    short = tempfile.TemporaryDirectory(prefix='fm', dir='/tmp')  # the name of a socket may have 107 characters
    env = {**environ, 'OMP_NUM_THREADS': '1', 'TMPDIR': short.name}
    def agent(i):
        where = f'--nnodes {n_agents} --node_rank {i} --nproc_per_node {n} --master_addr 127.0.0.1 --master_port {port}'
        command = sys.executable,'-W','ignore','-m','torch.distributed.run',*where.split(),program,tmp_path/'photos'
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    agents = list(map(agent, range(n_agents)))
    try: printed = [o.communicate(timeout=timeout_s)[0] for o in agents]
    finally:
        for o in agents: end_tree(o)
        left = list(Path(short.name).glob('fastmem-*'))
        short.cleanup()
    assert len(left)<=n_agents
    assert not any(o.returncode for o in agents), '\n'.join(printed)
    return ''.join(printed)

def end_tree(agent):
    "Kill an agent and its ranks, which would outlive it"
    try: tree = [psutil.Process(agent.pid), *psutil.Process(agent.pid).children(recursive=True)]
    except psutil.NoSuchProcess: return
    for o in tree:
        with contextlib.suppress(psutil.NoSuchProcess): o.kill()

def free_port():
    with socket.socket() as o:
        o.bind(('127.0.0.1', 0))
        return o.getsockname()[1]

stand_in = '''
import sys, types
try: import accelerate
except ImportError:  # without it `fastai.distributed` can't be imported
    accelerate = sys.modules['accelerate'] = types.ModuleType('accelerate')
    class Accelerator:
        def __init__(self): pass
    accelerate.Accelerator = Accelerator
'''
exec(stand_in)
from fastai.distributed import DistributedDL

setup = stand_in+'''
import itertools, os, warnings
import torch.distributed as dist
from fastai.vision.all import *
from fastai.distributed import DistributedDL
from fastmem.all import *
warnings.filterwarnings('ignore')
path,rank,n = sys.argv[1],int(os.environ['RANK']),int(os.environ['WORLD_SIZE'])

def _broadcast(self, t, rank):
    "Of fastai, which wants a GPU for it"
    t = torch.LongTensor(t)
    dist.broadcast(t, rank)
    return t.tolist()
DistributedDL._broadcast = _broadcast

def make(workers=0, **kwargs):
    set_seed(rank)
    return ImageDataLoaders.from_folder(path, valid_pct=.25, seed=1, item_tfms=RandomResizedCrop(32), bs=4, num_workers=workers, device='cpu', **kwargs)
def epoch(dls):
    set_seed(rank)
    for o in dls.loaders: o.rng = random.Random(rank)  # but for rank 0's, all orders are thrown away
    return [[tuple(map(torch.Tensor.clone, b)) for b in DistributedDL(o, rank, n, device='cpu')] for o in dls.loaders]
def same(a, b): return all(torch.equal(x, y) for p,q in zip(a, b, strict=True) for b1,b2 in zip(p, q, strict=True) for x,y in zip(b1, b2, strict=True))
'''

shared = '''
before = make().in_memory(store='decoded')  # before the process group is there
dist.init_process_group('gloo')
for workers in (0,2):
    stock,ours = make(workers),before if workers==0 else make(workers).in_memory(store='decoded', cache=before.train.cache)
    for _ in range(2): assert same(epoch(stock), epoch(ours))
dist.barrier()
m = before.memory
assert m.n_ranks==n and f'memory of {n} ranks' in repr(m), m
assert m.n_cached>=m.n_items-n*4 and m.misses<=m.n_items, m  # `drop_last` leaves some unread
dist.barrier()
before.preload()
dist.barrier()
assert before.memory.n_cached==m.n_items
before.train.cache.check()
dist.barrier()
if rank==n-1: assert before.purge()>before.memory.n_items*1000
dist.barrier()
assert before.memory.n_cached==0
assert same(epoch(make()), epoch(before))

read = []
def load(file): read.append(file); return np.asarray(Image.open(file))
loader = cached(load, on_random='freeze')
files = sorted(map(str, get_image_files(path)))
for o in files[rank::n]: loader(o)
dist.barrier()
for o in files: assert (loader(o)==np.asarray(Image.open(o))).all()
assert len(read)<=len(files)//n+1, len(read)
dist.barrier()
dist.destroy_process_group()
print('rank', rank, 'is done')
'''

@pytest.mark.parametrize('n', [2,4])
def test_ranks_share_one_copy_and_have_the_batches_of_stock(tmp_path, n):
    photo_folder(tmp_path/'photos', 48, size=(60,45))
    out = launch(tmp_path, shared, n)
    assert out.count('is done')==n and 'of its own' not in out

# --- a share for each machine ---

class _Stock(DistributedDL):
    "fastai's, for a rank that is not there"
    def _broadcast(self, t, rank): return t

def pieces(dl, n_ranks):
    "What each rank is handed of an epoch: all have the order of rank 0"
    state = dl.rng.getstate()
    def piece(i):
        dl.rng.setstate(state)
        return _Stock(dl, i, n_ranks, device='cpu').get_idxs()
    return list(map(piece, range(n_ranks)))

def check_shares(dl, machines, n_local):
    "Every item once an epoch, on one machine in all epochs but for fastai's padding, and in another order each time"
    first,second = (pieces(dl, machines*n_local) for _ in range(2))
    assert len(set(map(len, first)))==1
    orders = [list(itertools.chain(*o)) for o in (first,second)]
    assert all(sorted(o[:dl.n])==list(range(dl.n)) and o[dl.n:]==o[:len(o)-dl.n] for o in orders if dl.n>=machines*n_local)
    padding = set(itertools.chain(*(o[dl.n:] for o in orders)))
    def shares(epoch): return [set(itertools.chain(*epoch[i:i+n_local])) for i in range(0, len(epoch), n_local)]
    assert all(a^b<=padding for a,b in zip(shares(first), shares(second)))
    assert dl.n<100 or first!=second
    return shares(first)

def test_each_machine_draws_from_its_share(tmp_path, monkeypatch):
    files = photo_folder(tmp_path, 3, size=(8,6))
    monkeypatch.setenv('LOCAL_RANK', '0')
    for n in (5,257):
        dl = ImageDataLoaders.from_path_func('.', [files[i%3] for i in range(n)], parent_label, valid_pct=0, item_tfms=Resize(8), bs=4, device='cpu').in_memory(shard='machine').train
        for machines,n_local in itertools.product((1,2,3,16), range(1,9)):
            monkeypatch.setenv('LOCAL_WORLD_SIZE', str(n_local))
            monkeypatch.setenv('WORLD_SIZE', str(machines*n_local))
            shares = check_shares(dl, machines, n_local)
        dl.options.shard_seed = 1
        assert n==5 or check_shares(dl, machines, n_local)!=shares

def test_who_can_have_no_share(tmp_path, monkeypatch):
    files = photo_folder(tmp_path, 12, size=(8,6))
    block = DataBlock((ImageBlock,CategoryBlock), get_y=parent_label, item_tfms=Resize(8), splitter=RandomSplitter(seed=1))
    dsets = block.datasets(files)
    with pytest.raises(TypeError, match='WeightedDL draws'): block.weighted_dataloaders(files, [1]*12, bs=4).in_memory(shard='machine')
    with pytest.raises(TypeError, match='PartialDL draws'): dsets.partial_dataloaders(4, bs=4, after_item=[Resize(8),ToTensor()]).in_memory(shard='machine')
    with pytest.raises(ValueError, match='a preload keeps all'): block.dataloaders(files, bs=4).in_memory(shard='machine', mode='preload')
    dls = block.dataloaders(files, bs=4).in_memory(shard='machine')
    with pytest.raises(ValueError, match='a preload keeps all'): dls.preload()
    for k,v in dict(LOCAL_RANK=0, LOCAL_WORLD_SIZE=2, WORLD_SIZE=3).items(): monkeypatch.setenv(k, str(v))
    with pytest.raises(ValueError, match='2 of 3 are on this one'): block.dataloaders(files, bs=4).in_memory(shard='machine')

dealt = '''
dist.init_process_group('gloo')
machine,machines = int(os.environ['GROUP_RANK']),int(os.environ['GROUP_WORLD_SIZE'])
stock,dls = make(),make().in_memory(shard='machine')
def gathered(o):
    res = [None]*n
    dist.all_gather_object(res, o)
    return res
def orders(dl): return gathered(DistributedDL(dl, rank, n, device='cpu').get_idxs())
def share(orders): return set(itertools.chain(*orders[machine*n//machines:(machine+1)*n//machines]))
first,second = orders(dls.train),orders(dls.train)
assert first!=second and sorted(itertools.chain(*first))==list(range(36))
assert share(first)==share(second) and len(share(first))==36//machines
assert orders(dls.valid)==orders(stock.valid)
for _ in range(2): epoch(dls)
dist.barrier()
m = dls.memory
assert m.n_ranks==n//machines and 48//machines-4<=m.n_cached<=48//machines and m.misses==m.n_cached, m
dist.barrier()
dist.destroy_process_group()
print('rank', rank, 'is done')
'''

def test_two_agents_that_each_are_a_machine(tmp_path):
    "They share nothing, though they are on this machine"
    photo_folder(tmp_path/'photos', 48, size=(60,45))
    assert launch(tmp_path, dealt, 2, n_agents=2).count('is done')==4

# --- faults ---

killed = '''
import os, random, signal, sys, tempfile, time, traceback
from pathlib import Path
from fastai.vision.all import *
from fastmem.all import *
path = sys.argv[1]
files,tempfile.tempdir = get_image_files(path),sys.argv[3]
def loader():
    workers = random.choice([0,0,0,1])
    return ImageDataLoaders.from_path_func('.', files, parent_label, valid_pct=0, item_tfms=Resize(32), bs=8, num_workers=workers, device='cpu').in_memory()
def passes(dls):
    for x,y in dls.train:
        wanted = torch.tensor([int(dls.vocab[i])+1 for i in y]).view(-1,1,1,1)
        assert (x.as_subclass(torch.Tensor)==wanted).all(), 'a pixel of another image, or of none'
def step(dls):
    guard,what = dls.train.cache.guard,random.random()
    if what<.4: passes(dls)
    elif what<.6: dls.purge()
    elif what<.8: guard.give_back(random.randrange(1, 100_000)); dls.train.cache.resume()
    else: dls.train.preload(list(dls.train.columns.values()), random.choice([0,2]))
def rank(i, end_s):
    os.environ.update(LOCAL_RANK=str(i), LOCAL_WORLD_SIZE='3', MASTER_PORT='29500')
    random.seed(os.getpid())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    dls = loader()
    dls.train.after_batch = Pipeline([])
    while time.monotonic()<end_s: step(dls)
    passes(dls)
    return dls
def start(*args):
    if pid := os.fork(): return pid
    try: dls = rank(*args); os._exit(0 if dls.train.cache.n_ranks>=2 else 3)
    except BaseException: traceback.print_exc()
    finally: os._exit(9)
end_s = time.monotonic()+float(sys.argv[2])
others = [start(i, end_s) for i in range(2)]
n = 0
while time.monotonic()<end_s-.5:
    victim = start(2, end_s)
    time.sleep(random.random()*.4)
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    n += 1
ended = [os.waitstatus_to_exitcode(os.waitpid(o, 0)[1]) for o in others]
assert ended==[0,0], ended
assert len(list(Path(tempfile.tempdir).glob('fastmem-*')))==1
os.environ.update(LOCAL_RANK='0', LOCAL_WORLD_SIZE='3', MASTER_PORT='29500')
assert loader().memory.n_cached==0, 'nothing is left of what they had'
print(n, 'kills')
'''

def test_a_rank_that_is_killed_leaves_the_others_with_right_pixels(tmp_path):
    "At random instants of filling, reading, purging, shrinking and preloading"
    by_content(tmp_path/'photos')
    with tempfile.TemporaryDirectory(prefix='fm', dir='/tmp') as short:
        print(run_forked(tmp_path, killed, tmp_path/'photos', 12, short))

# --- accelerate ---

trained = '''
def fit(in_memory):
    dls = make(2)
    dls.train.rng = random.Random(0)
    if in_memory: dls.in_memory(store='decoded')
    set_seed(0)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(32*32*3, dls.c)), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(cpu=True, sync_bn=False): learn.fit(2, 1e-3)
    with learn.no_bar(), learn.distrib_ctx(cpu=True, sync_bn=False): preds = learn.get_preds()
    return [list(map(float, o)) for o in learn.recorder.values], [*learn.model.parameters(), *preds], dls
stock,ours = fit(False),fit(True)
assert stock[0]==ours[0], (stock[0],ours[0])
assert all(torch.equal(a, b) for a,b in zip(stock[1], ours[1], strict=True))
assert ours[2].memory.n_ranks==n
dist.destroy_process_group()
print('rank', rank, 'is done')
'''

def test_distrib_ctx_trains_as_stock(tmp_path):
    if not hasattr(sys.modules['accelerate'], '__version__'): pytest.skip('accelerate is not installed')
    photo_folder(tmp_path/'photos', 48, size=(60,45))
    assert launch(tmp_path, trained, 2).count('is done')==2

# --- memory ---

squeezed = '''
import multiprocessing, os, sys, tempfile
from fastai.vision.all import *
from fastmem.all import *
group,path,n = sys.argv[1],Path(sys.argv[2]),4
open(group+'/cgroup.procs', 'w').write(str(os.getpid()))
tempfile.tempdir = str(path)
files = sorted(path.glob('*/*.png'))
context = multiprocessing.get_context('fork')
barrier,found = context.Barrier(n, timeout=60),context.SimpleQueue()
def epoch(dls, part):
    for x,y in dls.train.new(get_idxs=lambda: part, n=len(part), shuffle=False):
        wanted = torch.tensor([int(dls.vocab[i]) for i in y], dtype=torch.uint8).view(-1,1,1,1)
        assert (x.as_subclass(torch.Tensor)==wanted).all(), 'a pixel of another image, or of none'
def rank(i):
    os.environ.update(LOCAL_RANK=str(i), LOCAL_WORLD_SIZE=str(n), MASTER_PORT='29500')
    dls = ImageDataLoaders.from_path_func('.', files, parent_label, valid_pct=0, bs=2, num_workers=0, device='cpu').in_memory(store='decoded')
    dls.train.after_batch = Pipeline([])
    for k in range(2):
        before = dls.memory
        barrier.wait()
        epoch(dls, list(range((i+k)%n, len(files), n)))
        barrier.wait()
    m = dls.memory
    barrier.wait()
    hits,misses = m.hits-before.hits,m.misses-before.misses
    found.put((m.cached_frac, hits/(hits+misses), m.n_ranks, m.cached_bytes))
ranks = [context.Process(target=rank, args=(i,)) for i in range(n)]
for o in ranks: o.start()
for o in ranks: o.join(100)
assert [o.exitcode for o in ranks]==[0]*n, ranks
for _ in ranks:
    cached_frac,hit_rate,n_ranks,cached_bytes = found.get()
    print(cached_frac, hit_rate, cached_bytes)
    assert .1<cached_frac<1 and abs(hit_rate-cached_frac)<.05 and n_ranks==n
'''

def test_four_ranks_in_less_memory_than_the_pixels_are_not_killed(tmp_path, cgroup):
    "One budget for all of them; what is cached of the items is hit by each rank"
    by_value(tmp_path, 240, size=(800,600))
    print(run_forked(tmp_path, squeezed, cgroup(500_000_000), tmp_path))

# --- whom a rank trusts ---

@pytest.fixture
def as_rank(tmp_path, monkeypatch):
    "Have this process be a rank, whose temporary folder is `tmp_path`"
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    def be(rank, port):
        for k,v in dict(LOCAL_RANK=rank, LOCAL_WORLD_SIZE=2, MASTER_PORT=port).items(): monkeypatch.setenv(k, str(v))
    be(0, 29500)
    return be

def test_what_is_no_file_of_ours_is_refused(tmp_path, as_rank, capsys):
    "A link, what is damaged, a file of another user: the rank has a cache of its own, says so, and leaves the file alone"
    file,other = meeting_file(),tmp_path/'other'
    other.write_text('precious')
    def refused(why):
        assert ImageCache().n_ranks==1
        out = capsys.readouterr().out
        assert out.count('\n')==1 and 'keeps images of its own' in out and why in out
    file.symlink_to(other)
    refused('plain file')
    file.unlink()
    file.write_text('precious')
    refused('not as fastmem writes it')
    if os.geteuid()==0:
        os.chown(file, 1234, 1234)
        refused('another user')
    assert file.read_text()==other.read_text()=='precious'

def test_two_runs_never_meet_and_what_is_left_goes(tmp_path, as_rank):
    "By the port; a holder that has ended, or of whom the number was given away since, holds nothing"
    first = ImageCache()
    holder = Holder(*json.loads(meeting_file().read_text()))
    assert holder.has_open() and not holder._replace(start=1).has_open() and meeting_file().stat().st_mode&0o777==0o600
    as_rank(1, 29501)
    ImageCache()
    assert len(list(tmp_path.iterdir()))==2 and meeting_file().read_text().count('\n')==1
    del first
    assert not holder.has_open()
    left = [o.rename(o.with_name(re.sub(r'-\d+-\d+-(?=[0-9a-f]{8}$)', f'-{os.getpid()}-1-', o.name))) for o in tmp_path.iterdir()]  # of a launcher that has ended
    ImageCache()
    assert list(tmp_path.iterdir())==[meeting_file()] and not left[0].exists()
