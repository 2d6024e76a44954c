"Plain PyTorch: one `.pt` file a sample under its DataLoader, uncached and cached"
import time

import torch
from contest import spread
from fastcore.all import *
from fastmem.all import CachedDataset
from processes import *
from torch.utils.data import DataLoader, Dataset

class TensorFiles(Dataset):
    "One tensor a file, with its label"
    def __init__(self, folder, n): self.folder,self.n = folder,n
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.load(f'{self.folder}/{i}.pt'),i%10

def make_files(folder, n, shape):
    for i in range(n): torch.save(torch.randn(shape), f'{folder}/{i}.pt')
    return TensorFiles(folder, n)

def epoch(ds, num_workers, watch=False)->tuple:
    "(seconds of one shuffled epoch, the most bytes that all processes took if `watch`)"
    start_s,n,most = time.perf_counter(),0,0
    for i,(x,_) in enumerate(DataLoader(ds, batch_size=64, shuffle=True, num_workers=num_workers)):
        n += len(x)
        if watch and i%40==39: most = max(most, tree_bytes())
    if n!=len(ds): raise RuntimeError(f'{n} samples came, of {len(ds)}')
    return time.perf_counter()-start_s,most

def contest(stock, ours, base_bytes, num_workers, runs)->dict:
    "Seconds of stock and ours in turns, after an untimed run of each; `base_bytes` is what stock takes where nothing is cached"
    _,(_,warm_bytes) = epoch(stock, num_workers),epoch(ours, num_workers, watch=True)
    turns = [(epoch(stock, num_workers)[0], epoch(ours, num_workers)[0]) for _ in range(runs)]
    cached = ours.memory.cached_bytes
    return dict(num_workers=num_workers, stock_s=[a for a,_ in turns], ours_s=[b for _,b in turns], ratio=spread([a/b for a,b in turns]),
                cached_bytes=cached, base_bytes=base_bytes, warm_bytes=warm_bytes, copies=(warm_bytes-base_bytes)/cached)

def run(
    works, # Images; none are needed
    tmp, # Folder to write to
    runs:int=5, # Of each, in turns
    n:int=10_000, # Samples
    shape:tuple=(1,28,28), # Of each, float32
    workers:tuple=(2,0),
)->dict:
    "Warm epochs of `CachedDataset` beside uncached ones"
    (folder := Path(tmp)/'pt').mkdir()
    stock = make_files(folder, n, shape)
    base_bytes = [epoch(stock, o, watch=True)[1] for o in workers]
    ours = CachedDataset(stock)
    epoch(ours, max(workers))
    return dict(n=n, shape=shape, rows=[contest(stock, ours, *o, runs) for o in zip(base_bytes, workers)])
