"Crops and flips of whole images: stock's windows, its pixels to a rounding, and nothing that is left behind"
import gc, re, signal, threading

import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem.learner import plan_loaders
from helpers import *

n_images = 12

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Photos, and images of noise, of several sizes"
    path = tmp_path_factory.mktemp('crops')
    photos = photo_folder(path/'photos', n_images, (200,150), quality=95)
    rng = np.random.default_rng(0)
    noise = [path/'noise'/o.relative_to(path/'photos').with_suffix('.png') for o in photos]
    for o,like in zip(noise, photos):
        o.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*Image.open(like).size[::-1],3), dtype=np.uint8)).save(o)
    return dict(photos=photos, noise=noise)

def loaders(files, item_tfms, blocks=(ImageBlock,CategoryBlock), get_y=parent_label, num_workers=0, **kwargs):
    set_seed(0)
    block = DataBlock(blocks, get_y=get_y, item_tfms=item_tfms, splitter=IndexSplitter(range(4)), **kwargs)
    return block.dataloaders(files, bs=4, num_workers=num_workers, device='cpu')

def levels(batch): return batch.float().mul(255 if batch.is_floating_point() else 1).round().numpy()

def images(epochs): return [o for epoch in epochs for part in epoch for b in part for o in levels(b[0])]

edits = dict(rrc=lambda: RandomResizedCrop(64), rect=lambda: RandomResizedCrop((40,72), min_scale=.3), flip=lambda: [RandomResizedCrop(64), FlipItem()],
             turned=lambda: [DihedralItem(), RandomResizedCrop(64)], dihedral=lambda: [DihedralItem(), Resize((48,64))],
             squish=lambda: [FlipItem(), Resize(64, method='squish')], pad=lambda: [FlipItem(), Resize(64, method='pad')],
             larger=lambda: RandomResizedCrop(224))
copied = dict(random_crop=lambda: [RandomCrop(64), FlipItem()], crop_pad=lambda: CropPad(160), turned=lambda: [CropPad(96), DihedralItem()])

# Stock's pixels

@pytest.mark.parametrize('tfms', edits)
@pytest.mark.parametrize('what,cls', [('photos',PILImage), ('noise',PILImage), ('noise',PILImageBW)])
def test_edits_are_stocks_to_a_rounding(what, cls, tfms, folders):
    "In training and validation: one level, more at one pixel of 1,000, and 55 dB; with stock's random numbers"
    def make(): return loaders(folders[what], edits[tfms](), blocks=(ImageBlock(cls),CategoryBlock))
    stock = batches(make(), 2)
    state = random_states()
    dls = make().in_memory()
    ours = batches(dls, 2)
    assert random_states()==state
    assert dls.memory.store=='decoded' and dls.memory.batches=='gathered'
    pairs = list(zip(images(ours), images(stock), strict=True))
    assert np.mean([(np.abs(a-b)>1).mean() for a,b in pairs])<=.001
    assert np.mean([min(psnr(a, b), 99) for a,b in pairs])>=55

def test_single_items_are_like_batches(folders):
    "Made one by one, as for a batch of which an item is skipped: to a rounding"
    dls = loaders(folders['photos'], RandomResizedCrop(64)).in_memory()
    batch = dls.valid.one_batch()[0]
    for i,b in enumerate(batch): assert np.abs(levels(dls.valid.do_item(i)[0])-levels(b)).max()<=1

@pytest.mark.parametrize('tfms,store', [(o,'decoded') for o in edits] + [(o,'auto') for o in copied])
def test_edits_are_stocks(tfms, store, folders):
    "Where whole images are asked for by name, or nothing is resized: to the bit"
    def make(): return loaders(folders['photos'], {**edits,**copied}[tfms]())
    stock,ours = batches(make(), 2),batches(make().in_memory(store=store), 2)
    for a,b in zip(images(ours), images(stock), strict=True): assert np.array_equal(a, b)

def test_tiny_images(tmp_path):
    "Of one pixel, fastai may crop none"
    files = [tmp_path/f'{i}.png' for i in range(12)]
    for i,o in enumerate(files): Image.new('RGB', (1+i//6,1), (9*i,250,80)).save(o)
    def make(): return loaders(files, RandomResizedCrop(16), get_y=lambda o: 'a')
    for a,b in zip(images(batches(make().in_memory(), 3)), images(batches(make(), 3)), strict=True): assert np.abs(a-b).max()<=1

@pytest.mark.parametrize('tfm', [RandomResizedCrop(64, resamples=(Image.Resampling.BICUBIC,NEAREST)), RandomResizedCrop(64, resamples=(NEAREST,NEAREST))], ids=['bicubic','nearest'])
def test_other_filters_are_pillows(tfm, folders):
    def make(): return loaders(folders['photos'], tfm)
    for a,b in zip(images(batches(make().in_memory())), images(batches(make())), strict=True): assert np.array_equal(a, b)

def test_masks_are_stocks(folders):
    def make(): return loaders(folders['photos'], [RandomResizedCrop(64), FlipItem()], (ImageBlock,MaskBlock), noop)
    for ours,stock in zip(batches(make().in_memory(), 2), batches(make(), 2)):
        for a,b in zip(L(ours).concat(), L(stock).concat()): assert torch.equal(a[1], b[1])

def test_stores_share_their_pixels(folders):
    "How an image is resized is no part of what is kept of it"
    make = lambda: loaders(folders['photos'], RandomResizedCrop(64))
    rounded,exact = make().in_memory(mode='preload'),make().in_memory(store='decoded')
    assert exact.train.cache is rounded.train.cache and exact.memory.cached_frac==1
    misses = exact.memory.misses
    a,b,c = (images(batches(loaders(folders['photos'], RandomResizedCrop(64)).in_memory(store=o))) for o in ('auto','decoded','auto'))
    assert exact.memory.misses==misses
    assert all(map(np.array_equal, a, c))
    if 'AVX' in torch.backends.cpu.get_cpu_capability(): assert not all(map(np.array_equal, a, b))

# Threads, and what is handed out

@pytest.fixture
def dls(folders): return loaders(folders['photos']*3, [RandomResizedCrop(64), FlipItem()]).in_memory(mode='preload')

def fastmems_threads(): return [o for o in threading.enumerate() if o.name.startswith('fastmem_') and o.is_alive()]  # the guard's own watches on

def test_batches_do_not_depend_on_threads(folders):
    "One core and all cores; no workers, and two that read and then are not needed"
    def epochs(n_cores, num_workers):
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(cores)[:n_cores])
        try: return images(batches(loaders(folders['photos'], edits['flip'](), num_workers=num_workers).in_memory(cache=ImageCache()), 2))
        finally: os.sched_setaffinity(0, cores)
    for n in (0,2): assert all(map(np.array_equal, epochs(1, n), epochs(None, n)))

def test_batches_that_were_handed_out_stay(dls):
    "Those of three epochs, held and compared at the end"
    held,copies = [],[]
    for _ in range(3):
        for b in dls.train:
            held.append(b[0])
            copies.append(b[0].clone())
    assert len(held)>12 and all(map(torch.equal, held, copies))

def test_nothing_is_left_of_an_epoch(dls):
    n_threads = torch.get_num_threads()
    for _ in dls.train: pass
    assert not fastmems_threads() and torch.get_num_threads()==n_threads

@pytest.mark.parametrize('after_s', [.01,.02,.03])
def test_interrupt_leaves_nothing(after_s, dls):
    "Ctrl-C wherever it comes: no threads, and the next epochs are as ever"
    def interrupt(*args): raise KeyboardInterrupt
    n_threads,valid = torch.get_num_threads(),images([[list(dls.valid)]])
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, after_s)
            while True:
                for _ in dls.train: pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    for o in fastmems_threads(): o.join(30)  # one that was just being started ends as soon as it runs
    assert not fastmems_threads() and torch.get_num_threads()==n_threads
    for _ in dls.train: pass
    assert all(map(np.array_equal, images([[list(dls.valid)]]), valid))

# Images that are kept smaller

@pytest.fixture(scope='module')
def large(tmp_path_factory): return photo_folder(tmp_path_factory.mktemp('large'), n_images, (900,600), quality=95)

def crops(files): return loaders(files, [RandomResizedCrop(64), FlipItem()])

def test_smaller_images_have_stocks_windows(large):
    "The same random numbers, and crops that are most alike stock's; a tenth of the memory"
    stock = batches(crops(large), 2)
    state = random_states()
    dls,whole = crops(large).in_memory(size=128),crops(large).in_memory(store='decoded', cache=ImageCache())
    ours = batches(crops(large).in_memory(size=128), 2)
    assert random_states()==state
    for o in (dls,whole): batches(o)
    assert dls.memory.batches=='gathered' and dls.memory.cached_bytes<whole.memory.cached_bytes/10
    assert np.mean([psnr(*o) for o in zip(images(ours), images(stock), strict=True)])>=33

def test_a_size_that_fits_is_named(large, capsys):
    "In the plan, and in the line about images that do not fit; what it names fits"
    plan = plan_loaders(crops(large), n_timed=0)
    assert plan.stores['size=128'].total_bytes<plan.total_bytes/10 and 'in_memory(size=128)' in str(plan)
    guard = MemoryGuard(limit_bytes=700_000, reserve_bytes=0)
    crops(large).in_memory(guard=guard)
    line = capsys.readouterr().out
    size = int(re.search(r'Use `size=(\d+)` \(\d+ kB\)', line)[1])
    assert 64<=size<128 and len(line.split())<=30
    with pytest.raises(MemoryError, match=f'`size={size}`'): crops(large).in_memory(guard=guard, on_full='raise')
    dls = crops(large).in_memory(size=size, guard=guard, mode='preload')
    assert dls.memory.cached_frac==1 and 'size=' not in capsys.readouterr().out

def test_no_size_is_named_where_it_would_not_help(folders, large):
    "Images that are not much larger than their crops, a `Resize`, crops of as many pixels"
    for dls in (crops(folders['photos']), loaders(large, Resize(64)), loaders(large, RandomCrop(64))):
        assert list(plan_loaders(dls, n_timed=0).stores) in (['decoded','encoded'], ['resized','decoded','encoded'])
