"Memory of 1, 2 and 4 ranks on one machine, beyond stock's: one copy a rank, and one copy for all. PYTHONPATH=. python benchmarks/ranks.py"
import multiprocessing, os, sys, tempfile, warnings
from pathlib import Path

os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
warnings.filterwarnings('ignore')
from fastai.vision.all import *
from fastmem.all import *
from machine import *
from processes import *

n_files,n_photos = 480,40
context = multiprocessing.get_context('fork')

class Unknown(RandTransform): "A transform that has workers make the items"

def photos(folder):
    "Noise that takes as long as photos to decode, under ten names each"
    rng = np.random.default_rng(0)
    for i in range(n_photos):
        Image.fromarray(rng.integers(0, 256, (375,500,3), np.uint8)).save(folder/f'{i}.jpg')
        for j in range(1, n_files//n_photos): (folder/f'{i}_{j}.jpg').hardlink_to(folder/f'{i}.jpg')
    return get_image_files(folder)

def epoch(dls, i, n, look):
    "This rank's part of the items; no further than a `look` in the middle"
    part = list(range(i, n_files, n))
    dl = dls.train.new(get_idxs=lambda: part, n=len(part))
    for k,_ in enumerate(dl):
        if look and k==len(dl)//2:
            look()
            return

def rank(
    who:str, # 'stock', 'copies' (one a rank) or 'fastmem'
    i:int, # Which rank
    n:int, # Ranks
    workers:int,
    files:list,
    barrier, # For all ranks
    found, # Queue for what the first rank finds
):
    "Epochs as a launcher's rank; the first rank tells what all take in the middle of a warm one, and after a purge"
    if who!='copies': os.environ.update(LOCAL_RANK=str(i), LOCAL_WORLD_SIZE=str(n), WORLD_SIZE=str(n), MASTER_PORT='29500')
    dls = ImageDataLoaders.from_lists('.', files, ['a']*n_files, valid_pct=0, item_tfms=[Unknown(), Resize(64)], bs=16, num_workers=workers, device='cpu')
    if who!='stock': dls.in_memory(store='decoded')
    res = []
    def look():
        barrier.wait()
        if i==0: res.append(tree_bytes(os.getppid()))
        barrier.wait()
    if who=='copies': dls.preload()  # after some epochs each has all
    if who=='fastmem': epoch(dls, i, n, None)
    barrier.wait()
    epoch(dls, (i+1)%n, n, look)
    m = dls.memory if who!='stock' else None
    barrier.wait()
    if i==n-1 and who=='fastmem': dls.purge()
    settle()
    look()
    if i==0: found.put((*res, m and m.cached_bytes, m and m.misses))

def measured(who, n, workers, files):
    "(bytes in a warm epoch, bytes after a purge, bytes cached, images decoded)"
    barrier,found = context.Barrier(n),context.Queue()
    ranks = [context.Process(target=rank, args=(who,i,n,workers,files,barrier,found)) for i in range(n)]
    for o in ranks: o.start()
    res = found.get(timeout=600)
    for o in ranks: o.join()
    return res

def rows(files, ns):
    for n,workers in itertools.product(ns, (0,2)):
        found = {o: measured(o, n, workers, files) for o in ('stock','copies','fastmem')}
        stock,payload_bytes = found['stock'],found['fastmem'][2]
        for who in ('copies','fastmem'):
            warm,purged,_,decoded = found[who]
            yield dict(who=who, n_ranks=n, num_workers=workers, payload_bytes=payload_bytes, above_stock_bytes=warm-stock[0],
                       above_stock_frac=(warm-stock[0])/payload_bytes, purged_frac=(purged-stock[1])/payload_bytes, n_decoded=decoded)

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as tmp:
        where,start_s,res = machine(),time.perf_counter(),[]
        for o in rows(photos(Path(tmp)), list(map(int, sys.argv[1:])) or (1,2,4)):
            print(o, flush=True)
            res.append(o)
    write_results(Path(__file__).parent/'results', 'ranks', where, time.perf_counter()-start_s, n_files=n_files, rows=res)
