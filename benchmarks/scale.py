"Cost as the dataset grows: seconds and bytes of `in_memory()`, of the first batch and of the second epoch's index"
import gc, json, sys, time, tracemalloc
from pathlib import Path

from contest import spread
from processes import *

most_runs = {10_000: 3, 100_000: 1, 1_000_000: 1} # By number of paths
per_folder = 1000

def tiny_files(
    folder:Path,
    n:int, # Paths that will be asked for
):
    "A folder of tiny images, and links to it: each image has a path in every link"
    from data import Image, np
    (real := folder/'tiny').mkdir(parents=True)
    for i in range(per_folder): Image.fromarray(np.full((8,8,3), i%256, np.uint8)).save(real/f'{i:03}.png')
    for i in range(n//per_folder): (folder/f'link{i:04}').symlink_to(real)

# In a process of its own

def first_batch_s(dl):
    "Seconds until an epoch has its first batch"
    start_s = time.perf_counter()
    batches = iter(dl); next(batches)
    took_s = time.perf_counter()-start_s
    batches.close()
    return took_s

def bytes_now():
    "Of this process, once it has given back what nobody uses"
    settle()
    return tree_bytes()

def traced_bytes():
    "What Python and numpy hold of what they allocated since `tracemalloc.start()`, and the memfds"
    gc.collect()
    return tracemalloc.get_traced_memory()[0]+memfd_bytes()

def made_dls(folder, n):
    "Stock fastai on `n` paths"
    from data import Work, stock_dls
    links = [f'link{i:04}' for i in range(n//per_folder)]
    files = [Path(f'{folder}/{o}/{i:03}.png') for o in links for i in range(per_folder)]
    return stock_dls(Work('tiny', files), vocab=links)

def child(
    who:str, # 'stock' or 'fastmem'
    how:str, # 'process', or 'traced' for bytes that are exact and timings that are none
    folder:str, # From `tiny_files`
    n:str, # Files to load
):
    "Print seconds and bytes of `in_memory()` and of the first batches of two epochs"
    dls,now = made_dls(folder, int(n)),dict(process=bytes_now, traced=traced_bytes)[how]
    if who=='fastmem': from fastmem.all import ImageCache
    if how=='traced': tracemalloc.start()
    before_bytes,start_s = now(),time.perf_counter()
    if who=='fastmem': dls.in_memory()
    in_memory_s,in_memory_bytes = time.perf_counter()-start_s,now()-before_bytes
    first_s,second_s = first_batch_s(dls.train),first_batch_s(dls.train)
    payload_bytes = dls.memory.cached_bytes if who=='fastmem' else 0
    print(json.dumps(dict(in_memory_s=in_memory_s, in_memory_bytes=in_memory_bytes, first_s=first_s, second_s=second_s,
                          above_bytes=now()-before_bytes-payload_bytes)))

# Rows

def per_item(n, runs):
    "Bookkeeping beyond stock's, in bytes per item; `None` if it was not measured"
    if runs['stock']: return spread([(o['above_bytes']-s['above_bytes'])/n for o,s in zip(runs['fastmem'], runs['stock'])])

def row(n, raw):
    "Medians for one size"
    ours,stock = (raw['process'][o] for o in ('fastmem','stock'))
    def of(name, runs=ours): return spread([o[name] for o in runs])
    return dict(n=n, in_memory_s=of('in_memory_s'), in_memory_bytes=of('in_memory_bytes'),
                first_beyond_stock_s=spread([o['in_memory_s']+o['first_s']-s['first_s'] for o,s in zip(ours, stock)]),
                second_s=of('second_s'), stock_second_s=of('second_s', stock),
                bytes_per_item=per_item(n, raw['process']), traced_bytes_per_item=per_item(n, raw['traced']))

def measure_size(folder, n, runs):
    "Stock and fastmem in turns, in processes of their own"
    raw = {how: dict(stock=[], fastmem=[]) for how in ('process','traced')}
    for how,times in (('process',min(runs, most_runs[n])), ('traced',int(n==100_000))):
        for _ in range(times):
            for who in ('stock','fastmem'): raw[how][who].append(measure(__file__, who, how, folder, n))
    return raw

def run(
    works:list, # Not used: the files are made up
    tmp, # Folder for files
    runs:int,
)->dict: # For the JSON file
    "The smallest size several times, the others once; bytes are traced for one of them"
    folder = Path(tmp)/'scale'
    tiny_files(folder, max(most_runs))
    raw = {n: measure_size(folder, n, runs) for n in most_runs}
    return dict(rows=[row(n, o) for n,o in raw.items()], raw=raw)

if __name__=='__main__': child(*sys.argv[1:])
