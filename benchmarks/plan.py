"What a plan says beside what comes: bytes and seconds to fill; the plan of a million files; pixels in a file beside pixels in RAM"
import time
from pathlib import Path

from contest import *
from data import *
from fastmem.all import *
from fastmem.recipe import *
from fastmem.plan import *

million = 1_000_000
per_folder = 1000
min_s = .5 # A warm run takes at least this long

def seconds(f)->tuple: # (seconds, what `f` returned)
    start_s = time.perf_counter()
    res = f()
    return time.perf_counter()-start_s,res

def float_dls(work, **kwargs):
    "Batches as `ImageBlock` makes them, of new loaders with a cache of their own"
    with quiet(): return stock_dls(work, image_block=ImageBlock).in_memory(cache=ImageCache(guard=MemoryGuard(), **kwargs))

def fill(dls):
    with quiet(): return seconds(dls.preload)[0]

def warm_rate(dls):
    "Images a second of training epochs"
    o = Contestant('warm', dls.train)
    timed_run(o, 0)
    res = timed_run(o, min_s)
    return res['images']/res['seconds']

def predict(work)->tuple:
    "(predicted, measured) for the images of `work`"
    files = list(work.files)
    plan_s,plan = seconds(lambda: probe(files, size=work.px, n_timed=32))
    dls = float_dls(work)
    measured = dict(fill_s=fill(dls), bytes=dls.memory.cached_bytes)
    dls.purge()
    return dict(fill_s=plan.fill_s, bytes=plan.total_bytes, plan_s=plan_s),measured

def predictions(work, runs)->dict:
    "Predicted over measured, in turns"
    predict(work)
    turns = [predict(work) for _ in range(runs)]
    ratios = {k: spread([p[k]/m[k] for p,m in turns]) for k in turns[0][1]}
    return dict(name=work.name, turns=turns, plan_s=spread([p['plan_s'] for p,_ in turns]), **ratios)

def in_file(work, tmp, runs)->dict:
    "Pixels in a file (`path=`) beside pixels in RAM: seconds to fill, and images a second, in turns"
    kinds = dict(ram={}, file=dict(path=Path(tmp)/f'pixels-{work.name}'))
    def turn(): return {k: (fill(o), warm_rate(o)) for k,o in ((k, float_dls(work, **kw)) for k,kw in kinds.items())}
    def emptied():
        for o in (Path(tmp)/f'pixels-{work.name}').glob('*'): o.unlink()
        return turn()
    emptied()
    turns = [emptied() for _ in range(runs)]
    return dict(name=work.name, turns=turns, fill=spread([o['file'][0]/o['ram'][0] for o in turns]),
                warm=spread([o['file'][1]/o['ram'][1] for o in turns]))

def many_files(folder, files, n=million):
    "`n` links to `files`, in folders of 1000"
    for i in range(n//per_folder):
        (to := folder/f'{i:04}').mkdir(parents=True)
        for j in range(per_folder): os.link(files[(i*per_folder+j)%len(files)], to/f'{i:04}_{j:03}.jpg')

def of_many(work, tmp, runs)->dict:
    "Seconds of the plan for a folder of a million files"
    copies = [Path(tmp)/f'{i}.jpg' for i in range(100)]  # a file system allows a file some 65,000 links
    for i,o in enumerate(copies): o.write_bytes(Path(work.files[i%len(work.files)]).read_bytes())
    many_files(Path(tmp)/'many', copies)
    times = [seconds(lambda: probe(Path(tmp)/'many', size=work.px, n_timed=32)) for _ in range(runs)]
    return dict(n_items=times[0][1].n_items, plan_s=spread([o for o,_ in times]), error_frac=times[0][1].error_frac)

def run(works, tmp, runs=5)->dict:
    "All of it"
    return dict(predictions=[predictions(o, runs) for o in works], in_file=[in_file(o, tmp, runs) for o in works],
                many=of_many(works[0], tmp, runs))
