"Ranks that a real launcher starts: one copy of the pixels for all of them, and the batches that stock has"
import os, subprocess, sys, tempfile
from pathlib import Path

import pytest
from fastai.vision.all import *
from fastmem.all import *
from helpers import environ, photo_folder

def launch(tmp_path, code, n, *args, timeout_s=120):
    "What `n` ranks of `torchrun` print that run `code`; all have to end well"
    program = tmp_path.parent/f'{tmp_path.name}.py'
    program.write_text(setup+code)
    env = {**environ, 'OMP_NUM_THREADS': '1', 'TMPDIR': str(tmp_path/'tmp')}
    (tmp_path/'tmp').mkdir(exist_ok=True)
    command = sys.executable,'-W','ignore','-m','torch.distributed.run','--standalone','--nproc_per_node',n,program,*args
    try: res = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout_s, env=env)
    finally: program.unlink()
    assert res.returncode==0, res.stdout+res.stderr
    return res.stdout

setup = '''
import os, sys, types, warnings
try: import accelerate
except ImportError:  # without it `fastai.distributed` can't be imported
    stand_in = sys.modules['accelerate'] = types.ModuleType('accelerate')
    class Accelerator:
        def __init__(self): pass
    stand_in.Accelerator = Accelerator
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
    out = launch(tmp_path, shared, n, tmp_path/'photos')
    assert out.count('is done')==n and 'of its own' not in out
    assert len(list((tmp_path/'tmp').glob('fastmem-*')))<=1
