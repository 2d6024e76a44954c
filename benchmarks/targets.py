"What fastmem has to hold: each work against stock fastai, in the same process and in turns"
import statistics

from fastmem.all import *
from contest import *
from data import *
from peers import Pixels, bare_gather, workers_asked

# Rows

def row(
    work:str, # What is measured
    value:dict, # From `spread`
    of:str, # What the value is
    at_least:float=None, # Threshold; `None` for a row that has none
    aim:float=None,
    at_most:float=None, # Threshold of a row where less is better
    num_workers:int=0, # Asked for
    note:str=''
)->dict: # For the JSON file
    "One line of the table, and whether it holds"
    holds = None
    if at_least is not None: holds = value['median']>=at_least
    if at_most is not None: holds = value['median']<=at_most
    return dict(work=work, num_workers=num_workers, of=of, at_least=at_least, at_most=at_most, aim=aim, holds=holds, note=note, **value)

def stock_rows(
    work:str,
    results:list, # From `interleave`
    at_least, # Threshold, or {workers: threshold}
    aim, # As `at_least`
    name:str='fastmem',
    same_workers:bool=False, # Whether stock has as many workers; none if not
    workers:tuple=workers_asked,
)->list: # Of rows
    "`name` over stock, for each number of workers"
    for n in workers:
        ours,stock = find(results, name, n),find(results, 'stock fastai', n if same_workers else 0)
        of = f'times stock at {n if same_workers else 0} workers'
        least,most = (o[n] if isinstance(o, dict) else o for o in (at_least,aim))
        if ours and stock: yield row(work, speedups(ours, stock), of, least, most, num_workers=n, note=ours['note'])

def gather_rows(results):
    "fastmem over the bare gather"
    for n in workers_asked:
        ours,bare = find(results, 'fastmem', n),find(results, 'bare gather')
        if ours: yield row('photos, warm', speedups(ours, bare), 'of the bare gather', .7, num_workers=n)

# Contestants

def stock(work, n=0, **kwargs): return Contestant('stock fastai', stock_dls(work, n, **kwargs).train, num_workers=n)

def warm(work, n=0, store='auto', name='fastmem', **kwargs):
    "fastmem with every image read"
    dls = warm_dls(stock_dls(work, n, **kwargs), store=store)
    return Contestant(name, dls.train, f'store {dls.memory.store}, batches {dls.memory.batches}', n)

def first_epoch(work, n=0, **kwargs):
    "fastmem with nothing read"
    return FirstEpoch('fastmem, first epoch', lambda: stock_dls(work, n, **kwargs).in_memory(cache=ImageCache()), num_workers=n, note='new DataLoaders for each run')

class Preload(Contestant):
    "`dls.preload()` of new DataLoaders"
    once = True
    def __init__(self, name, work, n_threads=None): # One thread a core if `None`
        super().__init__(name, note=f'dls.preload({"" if n_threads is None else f"n_workers={n_threads}"})')
        self.work,self.n_threads = work,n_threads

    def prepare(self):
        self.dls = None
        self.dls = stock_dls(self.work).in_memory(cache=ImageCache())

    def epoch(self):
        with quiet(): return self.dls.preload(self.n_threads).n_cached

# Works, each with its rows and the timings behind them

def warm_photos(work, tmp, runs):
    "Resize, uint8"
    field = [stock(work), bare_gather(Pixels(work, tmp)), *[warm(work, n) for n in workers_asked]]
    results = interleave(field, runs)
    return [*stock_rows('photos, warm', results, 150, 250), *gather_rows(results)],results

def warm_float(work, tmp, runs):
    "Resize, then IntToFloatTensor and Normalize"
    kwargs = dict(image_block=ImageBlock, batch_tfms=[Normalize.from_stats(*imagenet_stats)])
    results = interleave([stock(work, **kwargs), *[warm(work, n, **kwargs) for n in workers_asked]], runs)
    return list(stock_rows('photos, warm, float and normalized', results, 15, 60)),results

def warm_cifar(work, tmp, runs):
    "No resize"
    results = interleave([stock(work), *[warm(work, n) for n in workers_asked]], runs)
    return list(stock_rows('CIFAR, warm', results, 60, 230)),results

def warm_both(name, at_least, aim, store='auto', **kwargs):
    "A function that measures warm epochs with other item transforms, at the same number of workers"
    def measure(work, tmp, runs):
        field = [f(work, n, **kwargs) for n in workers_asked for f in (stock, partial(warm, store=store))]
        results = interleave(field, runs)
        return list(stock_rows(name, results, at_least, aim, same_workers=True)),results
    return measure

warm_rrc = warm_both('photos, warm, RandomResizedCrop, decoded', 3, 8, item_tfms=[RandomResizedCrop(224)], store='decoded')
warm_turned = warm_both('photos, warm, Resize and DihedralItem', 2.5, 4, item_tfms=[Resize(224), DihedralItem()])

class Inverted(RandTransform):
    "A random item transform that fastmem does not know"
    table = [255-o for o in range(256)]*3
    def encodes(self, x:PILImage): return PILImage(x.point(self.table)) if random.random()<.5 else x

class InvertedLast(Inverted): order = 2 # as albumentations are wrapped in fastai's tutorial

warm_items_last = warm_both('photos, warm, an unknown random item transform after Resize', 2.5, 3, item_tfms=[Resize(224), InvertedLast()])
warm_items = warm_both('photos, warm, Resize and an unknown random item transform', 2.5, 4, item_tfms=[Resize(224), Inverted()])

def first_epochs(name, at_least, aim, **kwargs):
    "A function that measures first, lazy epochs at the same number of workers, and their processor time"
    def measure(work, tmp, runs):
        field = [f(work, n, **kwargs) for n in workers_asked for f in (stock, first_epoch)]
        results = interleave(field, runs)
        rows = list(stock_rows(name, results, at_least, aim, 'fastmem, first epoch', same_workers=True))
        ours,of_stock = find(results, 'fastmem, first epoch'),find(results, 'stock fastai')
        return [*rows, row(name, cpu_ratios(ours, of_stock), "of stock's processor time", at_most=1)],results
    return measure

first_least,first_aim = {0: 2, 2: 1.4},{0: 3, 2: 2}
first_photos = first_epochs('photos, first epoch', first_least, first_aim)
first_rrc = first_epochs('photos, first epoch, RandomResizedCrop', first_least, first_aim, item_tfms=[RandomResizedCrop(224)])
first_pad = first_epochs("photos, first epoch, Resize(method='pad')", first_least, first_aim, item_tfms=[Resize(224, method='pad')])

def preload_row(work, results, at_least, aim):
    "Preload on all cores over preload on one"
    n_cores = len(os.sched_getaffinity(0))
    one,every = find(results, 'preload, 1 thread'),find(results, 'preload')
    values = spread([o/n_cores for o in speedups(every, one)['values']])
    return row(f'{work}, preload', values, f'of {n_cores} times the rate of one core', at_least, aim)

def preloads(work, tmp, runs):
    "Preload on one core and on all"
    results = interleave([Preload('preload, 1 thread', work, 1), Preload('preload', work)], runs)
    return [preload_row(work.name, results, .85, .95)],results

def large_photos(work, tmp, runs):
    "Photos of 3000×2000 with sensor noise"
    work = Work('large photos', make_large_photos(work.files, tmp), 224, bs=4)
    field = [f(work, n) for n in workers_asked for f in (stock, first_epoch)]
    results = interleave([*field, Preload('preload', work), Preload('preload, 1 thread', work, 1)], runs)
    rows = [*stock_rows('large photos, first epoch', results, 2, 2.5, 'fastmem, first epoch', same_workers=True),
            *stock_rows('large photos, preload', results, 4, 5, 'preload', workers=(0,)), preload_row('large photos', results, .85, .95)]
    return rows,results

# Half of the dataset in memory

def half_dls(work, n):
    "fastmem that may keep half of the images"
    full = warm_dls(stock_dls(work))
    half_bytes = full.memory.cached_bytes//2
    full.purge()
    with quiet(): return stock_dls(work, n).in_memory(mode='preload', guard=MemoryGuard(limit_bytes=half_bytes))

def over_ideal(half, kept_frac, gather, stream):
    "Time of a half cached epoch over what its two halves would take, run by run"
    return spread([h/(kept_frac*g+(1-kept_frac)*s) for h,g,s in zip(*map(run_s, (half,gather,stream)))])

def half_rows(results, n, kept_frac):
    "Against stock's streaming, and against our own first pass"
    half,gather = find(results, 'fastmem, half cached', n),find(results, 'fastmem', n)
    for name,of in (('stock fastai','streamed as stock does'), ('fastmem, first epoch','streamed as our first epoch does')):
        value = over_ideal(half, kept_frac, gather, find(results, name, n))
        yield row('photos, warm, half cached', value, f'of the ideal: {kept_frac:.0%} gathered, the rest {of}', aim=1.05, at_most=1.15, num_workers=n)

def half_cached(work, tmp, runs):
    "A guard that has room for half of the images"
    halves = [half_dls(work, n) for n in workers_asked]
    field = [Contestant('fastmem, half cached', o.train, num_workers=n) for o,n in zip(halves, workers_asked)]
    field += [f(work, n) for n in workers_asked for f in (stock, first_epoch, warm)]
    results = interleave(field, runs)
    rows = [half_rows(results, n, o.memory.cached_frac) for o,n in zip(halves, workers_asked)]
    return sum(map(list, rows), []),results

# All

on_photos = dict(photos_warm=warm_photos, photos_float=warm_float, photos_rrc=warm_rrc, photos_turned=warm_turned,
                 photos_items=warm_items, photos_items_last=warm_items_last,
                 photos_first=first_photos, photos_first_rrc=first_rrc, photos_first_pad=first_pad, photos_preload=preloads, large_photos=large_photos, photos_half=half_cached)
on_cifar = dict(cifar_warm=warm_cifar, cifar_first=first_epochs('CIFAR, first epoch', 1, 1.6))

def run(
    works:list, # Photos, then CIFAR
    tmp, # Folder for files
    runs:int,
)->dict: # For the JSON file
    "Every work of the table"
    rows,timings,failed = [],{},{}
    for work,measures in zip(works, (on_photos, on_cifar)):
        for name,measure in measures.items():
            try: some,timings[name] = measure(work, tmp, runs)
            except Exception as e: some,failed[name] = [],why(e)
            rows += some
    return dict(rows=rows, failed=failed, timings=timings)
