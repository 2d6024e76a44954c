"Plain PyTorch: one `.pt` file a sample under its DataLoader, uncached and cached: python benchmarks/dataset.py"
import os
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')  # loading is what is measured, on the CPU

import tempfile, time, warnings

import torch
from contest import spread
from fastcore.all import *
from fastcore.script import call_parse
from fastmem.all import CachedDataset, human_bytes
from machine import *
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
    n:int=10_000, # Samples
    shape:tuple=(1,28,28), # Of each, float32
    runs:int=7,
    workers:tuple=(2,0),
)->list: # A row for each of `workers`
    "Warm epochs of `CachedDataset` beside uncached ones"
    with tempfile.TemporaryDirectory() as tmp:
        stock = make_files(tmp, n, shape)
        base_bytes = [epoch(stock, o, watch=True)[1] for o in workers]
        ours = CachedDataset(stock)
        epoch(ours, max(workers))
        return [contest(stock, ours, *o, runs) for o in zip(base_bytes, workers)]

@call_parse
def main(
    n:int=10_000, # Samples
    runs:int=7, # Of each, in turns
    out:str=None, # Folder to write `dataset.json` to
):
    "Print, and write, how a warm epoch of `.pt` files compares"
    warnings.filterwarnings('ignore')
    where,start_s = machine(),time.perf_counter()
    rows = run(n, runs=runs)
    for o in rows:
        ratio = o['ratio']
        print(f"{o['num_workers']} workers: {ratio['median']:.2f} times an uncached epoch ({ratio['min']:.2f} to {ratio['max']:.2f}), "
              f"{human_bytes(o['cached_bytes'])} cached, {o['copies']:.2f} copies of it in all processes")
    if out: write_results(out, 'dataset', where, time.perf_counter()-start_s, n=n, runs=runs, rows=rows)
