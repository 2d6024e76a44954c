"What fastmem has to hold: each work against stock fastai, in the same process and in turns"
import contextlib, statistics, subprocess, sys

from fastai.vision.gan import generate_noise
from fastmem.all import *
from torch.nn.functional import interpolate
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
    at_least, # Threshold; {workers: threshold} where they differ
    aim,
    name:str='fastmem',
    same_workers:bool=False, # Whether stock has as many workers; none if not
    workers:tuple=workers_asked,
)->list: # Of rows
    "`name` over stock, for each number of workers"
    for n in workers:
        ours,stock = find(results, name, n),find(results, 'stock fastai', n if same_workers else 0)
        of = f'times stock at {n if same_workers else 0} workers'
        goals = [o[n] if isinstance(o, dict) else o for o in (at_least,aim)]
        if ours and stock: yield row(work, speedups(ours, stock), of, *goals, num_workers=n, note=ours['note'])

def gather_rows(results):
    "fastmem over the bare gather"
    for n in workers_asked:
        ours,bare = find(results, 'fastmem', n),find(results, 'bare gather')
        if ours: yield row('photos, warm', speedups(ours, bare), 'of the bare gather', .7, num_workers=n)

# Contestants

def stock(work, n=0, **kwargs): return Contestant('stock fastai', stock_dls(work, n, **kwargs).train, num_workers=n)

def warm(work, n=0, store='auto', name='fastmem', size=None, **kwargs):
    "fastmem with every image read"
    dls = warm_dls(stock_dls(work, n, **kwargs), store=store, size=size)
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

# Crops of whole images. The floors of one of photos300 on a core: about 280 kB copied from where they lie to where they are resized (50 µs),
# `interpolate` (180 µs), and 150 kB written to the batch as planes (50 µs)

class CropFloor(Contestant):
    "PyTorch's `interpolate` alone, one thread a core, on windows as `RandomResizedCrop` draws them; they are copied before, and nothing is batched"
    def __init__(self, work):
        super().__init__('interpolate alone')
        self.crops = [self.crop(o, RandomResizedCrop(work.px)) for o in work.files]
        self.px = work.px

    def crop(self, file, tfm):
        im = PILImage.create(file)
        tfm.before_call(im, split_idx=0)
        (x,y),(w,h) = tfm.tl,tfm.cp_size
        pixels = np.asarray(im)[y:y+h, x:x+w].copy()
        return torch.from_numpy(pixels)[None].permute(0,3,1,2)

    def epoch(self):
        threaded(lambda o: interpolate(o, (self.px,self.px), mode='bilinear', antialias=True), self.crops)
        return len(self.crops)

crop_goals = dict(at_least={0:14, 2:8}, aim={0:20, 2:12})

def warm_rrc(work, tmp, runs):
    "Random crops beside their floor, and what they were before: bit-identical, by Pillow"
    tfms,name = dict(item_tfms=[RandomResizedCrop(224)]),'photos, warm, RandomResizedCrop'
    field = [f(work, n, **tfms) for n in workers_asked for f in (stock, warm, partial(warm, store='decoded', name='fastmem, decoded'))]
    results = interleave([*field, CropFloor(work)], runs)
    rows = [*stock_rows(name, results, **crop_goals, same_workers=True),
            *stock_rows(name+', decoded', results, 3, 8, 'fastmem, decoded', same_workers=True)]
    floor = find(results, 'interpolate alone')
    rows += [row(name, speedups(find(results, 'fastmem', n), floor), 'of interpolate alone', num_workers=n) for n in workers_asked]
    return rows,results

warm_crops = {k: warm_both(f'photos, warm, {k}', **crop_goals, item_tfms=o) for k,o in {
    'RandomResizedCrop and FlipItem': [RandomResizedCrop(224), FlipItem()], 'RandomCrop': [RandomCrop(224)], 'CropPad': [CropPad(224)],
    'DihedralItem and RandomResizedCrop': [DihedralItem(), RandomResizedCrop(224)]}.items()}

def large_crops(work, tmp, runs):
    "Random crops of 3000×2000, kept at a short side of 448: the rate of the small photos, a tenth of the memory of whole images"
    folder = Path(tmp)/'crops'
    folder.mkdir()
    files,tfms = make_large_photos(work.files, folder),dict(item_tfms=[RandomResizedCrop(224)])
    large = Work('large photos', files*12, 224)
    small = work._replace(files=work.files[:len(large.files)])
    results = interleave([warm(large, size=448, name='size=448', **tfms), warm(small, name='small photos', **tfms)], runs)
    dls = warm_dls(stock_dls(large, **tfms), size=448)
    fraction = dls.memory.cached_bytes/(len(files)*3000*2000*3)
    name = 'large photos, warm, RandomResizedCrop, size=448'
    rows = [row(name, speedups(find(results, 'size=448'), find(results, 'small photos')), 'of the rate of small photos', .9),
            row(name, spread([fraction]), 'of the memory of whole images', at_most=.1)]
    return rows,results
warm_turned = warm_both('photos, warm, Resize and DihedralItem', 2.5, 4, item_tfms=[Resize(224), DihedralItem()])

class Inverted(RandTransform):
    "A random item transform that fastmem does not know"
    table = [255-o for o in range(256)]*3
    def encodes(self, x:PILImage): return PILImage(x.point(self.table)) if random.random()<.5 else x

class InvertedLast(Inverted): order = 2 # as albumentations are wrapped in fastai's tutorial

warm_items_last = warm_both('photos, warm, an unknown random item transform after Resize', 2.5, 3, item_tfms=[Resize(224), InvertedLast()])
warm_items = warm_both('photos, warm, Resize and an unknown random item transform', 2.5, 4, item_tfms=[Resize(224), Inverted()])

# Targets that fastai's own transforms draw, crop or pad

squished = [Resize(224, method='squish')]
def corners(o): return [[20.,30.],[150.,200.]]
def boxes(o): return [[20.,30.,150.,200.]]*(1+len(o.name)%2)
def box_names(o): return ['cat']*(1+len(o.name)%2)

warm_points = warm_both('photos, warm, points', 3, 8, item_tfms=squished, blocks=(uint8_block,PointBlock), get_y=corners)
warm_boxes = warm_both('photos, warm, boxes', 3, 8, item_tfms=squished, blocks=(uint8_block,BBoxBlock,BBoxLblBlock(['cat'])),
                       get_y=[boxes,box_names], n_inp=1)
warm_noise = warm_both('photos, warm, noise of a GAN', 10, 40, item_tfms=[Resize(64)], blocks=(TransformBlock,uint8_block),
                       get_x=generate_noise, get_y=noop)

# What must cost no more than its like

def warm_padded(work, tmp, runs):
    "Resize(method='pad') beside squish"
    field = [warm(work, name=o, item_tfms=[Resize(work.px, method=o)]) for o in ('squish','pad')]
    results = interleave(field, runs)
    value = speedups(*[find(results, o) for o in ('squish','pad')])
    return [row("photos, warm, Resize(method='pad')", value, "of squish's time", at_most=2, aim=1.5)],results

@contextlib.contextmanager
def busy_cores(for_s=120):
    "A process that keeps it busy on each core"
    code = f'import time; end = time.time()+{for_s}\nwhile time.time()<end: pass'
    busy = [subprocess.Popen([sys.executable, '-c', code]) for _ in os.sched_getaffinity(0)]
    try: yield
    finally:
        for o in busy: o.kill(); o.wait()

class Threaded(Contestant):
    "With so many threads of PyTorch's"
    def prepare(self): torch.set_num_threads(self.n)

def warm_busy(work, tmp, runs):
    "PyTorch's threads beside one, while all cores are busy"
    n,dl = torch.get_num_threads(),warm_dls(stock_dls(work, item_tfms=squished)).train
    field = [Threaded(o, dl) for o in ('1 thread','threads')]
    field[0].n,field[1].n = 1,max(n, 2)
    try:
        with busy_cores(): results = interleave(field, runs)
    finally: torch.set_num_threads(n)
    value = speedups(*[find(results, o.name) for o in field])
    return [row('photos, warm, beside a busy process on each core', value, "of one thread's time", at_most=2, aim=1)],results

def first_epochs(name, at_least, aim):
    "A function that measures first, lazy epochs at the same number of workers"
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

on_photos = dict(photos_warm=warm_photos, photos_float=warm_float, photos_rrc=warm_rrc, photos_turned=warm_turned, large_crops=large_crops,
                 **{f'photos, {k}': o for k,o in warm_crops.items()},
                 photos_items=warm_items, photos_items_last=warm_items_last, photos_points=warm_points, photos_boxes=warm_boxes,
                 photos_noise=warm_noise, photos_pad=warm_padded, photos_busy=warm_busy,
                 photos_first=first_photos, photos_first_rrc=first_rrc, photos_first_pad=first_pad, photos_preload=preloads,
                 large_photos=large_photos, photos_half=half_cached)
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
