"Memory above the payload: what the tree of processes takes beyond the pixels, ours minus stock's own"
import json, sys

from fastcore.all import *
from contest import spread
from processes import *

workers_asked = 0,2,8
n_samples = 4 # An epoch

# In a process of its own

def above_bytes(dls):
    "Bytes of all processes beyond the pixels in memory"
    payload_bytes = dls.memory.cached_bytes if hasattr(dls.train, 'cache') else 0
    return tree_bytes()-payload_bytes

def epoch_bytes(dls):
    "The most that is above the payload during one epoch"
    every,most = max(1, len(dls.train)//n_samples),0
    for i,_ in enumerate(dls.train):
        if i%every==every-1: most = max(most, above_bytes(dls))
    return most

def child(
    who:str, # 'stock' or 'fastmem'
    num_workers:str,
    file:str, # JSON of paths
):
    "Print the most above the payload in a first and a second epoch, and the payload"
    from data import Work, stock_dls
    dls = stock_dls(Work('photos', [Path(o) for o in Path(file).read_json()], 224), int(num_workers))
    if who=='stock': return print(json.dumps(dict(above_bytes=[epoch_bytes(dls)], payload_bytes=0)))
    from fastmem.all import ImageCache
    dls = dls.in_memory()
    above = [epoch_bytes(dls), epoch_bytes(dls)]
    print(json.dumps(dict(above_bytes=above, payload_bytes=dls.memory.cached_bytes)))

# Rows

def frac_row(epoch, n, ours, stock, of):
    "Our bytes beyond payload and stock, as a fraction of the payload"
    value = spread([(o['above_bytes'][epoch]-s['above_bytes'][0])/o['payload_bytes'] for o,s in zip(ours, stock)])
    return dict(work=f'memory above the payload, {("first","warm")[epoch]} epoch', num_workers=n, of=of, at_least=None, at_most=.05, aim=.02,
                holds=value['median']<=.05, note='', **value)

def rows(raw):
    "A first epoch beside stock's with as many workers; a warm one needs none, and stands beside stock's without"
    for n in workers_asked:
        yield frac_row(0, n, raw[f'fastmem {n}'], raw[f'stock {n}'], f'of the payload, beyond stock at {n} workers')
        yield frac_row(1, n, raw[f'fastmem {n}'], raw['stock 0'], 'of the payload, beyond stock at 0 workers')

def run(
    works:list, # Photos first
    tmp, # Folder for files
    runs:int,
)->dict: # For the JSON file
    "The processes of stock and fastmem in turns, twice at most"
    files,again = works[0].files,Path(tmp)/'again'
    again.symlink_to(tmp)
    files = [*files, *[again/o.relative_to(tmp) for o in files]]  # twice as many, so that what does not grow with them weighs less
    file = Path(tmp)/'photos.json'
    file.write_text(json.dumps([str(o) for o in files]))
    raw = {f'{who} {n}': [] for n in workers_asked for who in ('stock','fastmem')}
    for _ in range(min(runs, 2)):
        for o in raw: raw[o].append(measure(__file__, *o.split(), file))
    return dict(n_files=len(files), rows=list(rows(raw)), raw=raw)

if __name__=='__main__': child(*sys.argv[1:])
