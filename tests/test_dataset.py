"Samples come back as they were, datasets as PyTorch's loaders see them, and what a cache must refuse"
import array, copy, enum, gc, io, math, operator, os, pickle, random, shutil, signal
from types import SimpleNamespace
from collections import OrderedDict, namedtuple
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import ArrayImage, ArrayMask, PILImage, PILMask, TensorCategory, TensorImage, TensorMask
import fastmem.dataset
from fastmem.all import *
from fastmem.dataset import decode_sample, encode_sample
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from pathlib import Path
from PIL import Image, ImageOps
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler, Subset, TensorDataset, random_split
from torchvision import tv_tensors
from helpers import photo, run_forked, run_program

# --- a sample round-trips ---

def same(a, b):
    "Whether two samples are equal in every type, bit and name"
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor):
        return (a.dtype,a.shape)==(b.dtype,b.shape) and strides(a)==strides(b) and bits(a)==bits(b) and same(dict(vars(a)), dict(vars(b)))
    if isinstance(a, (np.ndarray,np.generic)): return a.dtype.str==b.dtype.str and a.shape==b.shape and a.tobytes()==b.tobytes() and same(getattr(a, '__dict__', {}), getattr(b, '__dict__', {}))
    if isinstance(a, complex): return repr(a)==repr(b)
    if isinstance(a, Image.Image):
        own = [{k: v for k,v in vars(o).items() if k not in ('_im','palette')} for o in (a,b)]
        return ((a.mode,a.size,a.tobytes())==(b.mode,b.size,b.tobytes()) and same(*own)
                and (a.mode not in ('P','PA') or (a.palette.mode,a.getpalette(None))==(b.palette.mode,b.getpalette(None))))
    if isinstance(a, dict): return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    if isinstance(a, (tuple,list)): return len(a)==len(b) and all(map(same, a, b))
    return a==b or (a!=a and b!=b)

def strides(x): return x.numel() and [o for o,n in zip(x.as_subclass(torch.Tensor).clone().stride(), x.shape) if n>1]

def bits(x): return x.as_subclass(torch.Tensor).clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).tolist()

def back(x): return decode_sample(bytearray(encode_sample(x)))

class Item(NamedTuple):
    x:object
    label:object

class Side(enum.Enum): LEFT,RIGHT = 'l','r'

torch_dtypes = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16,
                torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn]
modes = '1 L P RGB RGBA CMYK LA YCbCr HSV LAB I;16 I F PA'.split()
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
array_dtypes = st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(endianness='?'), hnp.floating_dtypes(endianness='?'), hnp.complex_number_dtypes(),
                         hnp.datetime64_dtypes(endianness='='), hnp.timedelta64_dtypes(endianness='='), hnp.unicode_string_dtypes(min_len=1, max_len=4), hnp.byte_string_dtypes(min_len=1, max_len=4))

@st.composite
def tensors(draw):
    "Of any bits, NaNs of all kinds too; with any strides, and of any class"
    dtype,shape = draw(st.sampled_from(torch_dtypes)),draw(shapes)
    n_bytes = torch.empty((), dtype=dtype).itemsize*math.prod(shape)
    raw = bytearray(draw(st.binary(min_size=n_bytes, max_size=n_bytes)))
    if dtype is torch.bool: raw = bytearray(o%2 for o in raw)
    x = torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
    if draw(st.booleans()): x = x.permute(draw(st.permutations(range(x.ndim))))
    if x.ndim and draw(st.booleans()): x = x[::2]
    return x.as_subclass(draw(st.sampled_from([torch.Tensor,TensorImage,TensorMask,TensorCategory,tv_tensors.Mask])))

@st.composite
def images(draw):
    mode,size = draw(st.sampled_from(modes)),(draw(st.integers(0, 9)),draw(st.integers(0, 9)))
    im = Image.new(mode, size)
    if mode in ('P','PA'): im.putpalette(draw(st.binary(min_size=12, max_size=12)), draw(st.sampled_from(['RGB','RGBA'])))
    n = len(im.tobytes())
    im.frombytes(draw(st.binary(min_size=n, max_size=n))) if n else None
    if mode in ('P','RGB','L') and draw(st.booleans()): im.info['transparency'] = draw(st.one_of(st.integers(0, 255), st.binary(max_size=4)))
    if draw(st.booleans()): im.info.update(dpi=(72.5,300), icc_profile=draw(st.binary(max_size=9)), progressive=1, gamma=.45, comment='a', alike=True)
    return im

@st.composite
def arrays(draw):
    a = draw(array_dtypes.flatmap(lambda o: hnp.arrays(o, shapes))).view(draw(st.sampled_from([np.ndarray,ArrayImage,ArrayMask])))
    if type(a) is not np.ndarray and draw(st.booleans()): a.size_of_file = 3,4
    return a

np_scalars = hnp.arrays(st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.complex_number_dtypes(), hnp.datetime64_dtypes()), ()).map(lambda o: o[()])
small = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(max_size=20), st.sampled_from(Side), st.text().map(np.str_))
leaves = st.one_of(small, tensors(), arrays(), np_scalars, images())
keys = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none())
nested = st.recursive(leaves, lambda o: st.one_of(st.lists(o, max_size=3), st.lists(o, max_size=3).map(tuple), st.dictionaries(keys, o, max_size=3), st.builds(Item, o, o)), max_leaves=6)
thorough = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@thorough
@given(nested)
def test_samples_round_trip(sample): assert same(sample, back(sample))

@thorough
@given(tensors())
def test_tensors_round_trip(x): assert same(x, back(x))

@thorough
@given(arrays())
def test_arrays_round_trip(x): assert same(x, back(x))

@thorough
@given(images())
def test_images_round_trip(im): assert same(im, back(im))

@pytest.mark.parametrize('x', [2**64, -10**5000, 1<<63, -(1<<63), math.inf, -math.inf, math.nan, -0., 5e-324, True, '\ud800', '', b'', (), {}, [], None], ids=lambda o: type(o).__name__)
def test_small_things_round_trip(x): assert same(x, back(x)) and (type(x) is not float or repr(x)==repr(back(x)))

@pytest.mark.parametrize('ext', ['jpg','png','gif','tif','webp','bmp'])
def test_an_opened_file_comes_back_with_all_that_it_says(tmp_path, ext):
    im = photo(size=(60,40)); exif = Image.Exif(); exif[0x112] = 6
    im.save(tmp_path/f'a.{ext}', exif=exif, dpi=(300,150))
    opened = Image.open(tmp_path/f'a.{ext}')
    opened.shown = 'a'
    got = back(opened)
    assert type(got) is type(opened) and got.format==opened.format and got.tobytes()==opened.tobytes() and got.filename==opened.filename and got.shown=='a'
    assert same(dict(got.info), dict(opened.info)) and (ext=='tif' or dict(got.getexif())==dict(opened.getexif())) and got.convert('RGB').tobytes()==opened.convert('RGB').tobytes()
    with got: assert ImageOps.exif_transpose(got).size==ImageOps.exif_transpose(opened).size and got.rotate(90, expand=True).size==got.size[::-1]

def test_an_image_of_fastais_keeps_its_class_and_attributes(tmp_path):
    photo(size=(60,40)).save(tmp_path/'a.jpg', dpi=(300,300))
    for cls in (PILImage,PILMask):
        im = cls.create(tmp_path/'a.jpg'); im.note,im.box = 'a',torch.ones(4)
        got = back((im,))[0]
        assert type(got) is cls and same(got, im) and got.note=='a' and got.info['dpi']==(300,300)

def test_what_a_file_says_of_its_image_is_kept(tmp_path):
    from PIL import ImageCms, PngImagePlugin
    profile,text = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(),PngImagePlugin.PngInfo()
    text.add_itxt('author', 'Zoë', 'fr'); text.add_text('year', '1999')
    photo(size=(60,40)).save(tmp_path/'a.png', icc_profile=profile, dpi=(300,150), pnginfo=text)
    opened = Image.open(tmp_path/'a.png'); opened.load(); got = back(opened)
    assert got.info['icc_profile']==profile and got.info['dpi']==opened.info['dpi'] and got.info['year']=='1999' and got.info['author'].lang=='fr'

def test_attributes_of_a_tensor_are_kept():
    boxes = tv_tensors.BoundingBoxes(torch.rand(3,4), format='XYXY', canvas_size=(20,30))
    got = back((boxes,))[0]
    assert same(boxes, got) and got.canvas_size==(20,30) and got.format is boxes.format

def test_a_memory_mapped_array_comes_back_as_an_ordinary_one(tmp_path):
    a = np.memmap(tmp_path/'a', np.float32, 'w+', shape=(4,5)); a[:] = 7
    assert same(np.full((5,2), 7, np.float32), back(a[2:].T))

def local_class():
    class Local(NamedTuple): x:int
    return Local(1)

class Side2(set): pass

pickled = dict(set={1}, path=Path('/a'), objects=np.array([1,'a'], object), structured=np.zeros(2, 'i4,f4'), leaf=torch.ones(2, requires_grad=True), sparse=torch.eye(2).to_sparse(),
               meta=torch.empty(2, device='meta'), masked=np.ma.array([1,2], mask=[0,1]), np_bytes=np.bytes_(b'a'), ordered_dict=OrderedDict(a=1), torch_size=torch.Size([1]), function=local_class,
               quantized=torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.quint8), subclass=Side2({1}), dtype=torch.float16, parameter=torch.nn.Parameter(torch.ones(2)), boxes=torch.zeros(0,4))

@pytest.mark.parametrize('what', pickled)
def test_whatever_pickles_is_kept(what):
    x = pickled[what]; got = back((0, {'x': x}))[1]['x']
    assert type(got) is type(x) and str(got)==str(x) and getattr(got, 'requires_grad', None)==getattr(x, 'requires_grad', None)

def test_one_object_twice_stays_one():
    x = torch.ones(2); a,b = back((x,x))
    assert a is b

refused = dict(generator=(o for o in ()), function=lambda: 0, graph=torch.ones(2, requires_grad=True)*2, local=local_class(), file=open(os.devnull))

@pytest.mark.parametrize('what', refused)
def test_what_is_refused_is_named_with_the_way_out(what):
    with pytest.raises(TypeError, match=r"^sample\[1\]\['boxes'\]: a.* can't be cached: \w+"): encode_sample((0, {'boxes': refused[what]}))
    with pytest.raises(TypeError, match=r"^sample\.label\[0\]: "): encode_sample(Item(0, [refused[what]]))

# --- datasets ---

class Files(Dataset):
    "One tensor a file; `n_read` counts what this process has read, by itself: it is no part of what decides its samples"
    classes = ['even','odd']
    def __init__(self, folder): self.files,self._count = sorted(Path(folder).glob('*.pt')),array.array('l', [0,0])
    @property
    def n_read(self): return self._count[0]
    @n_read.setter
    def n_read(self, n): self._count[0] = n
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        x = torch.load(self.files[i])
        self.n_read += 1
        return x,i%2

class Many(Files):
    def __getitems__(self, idxs): self.asked = idxs; return [self[i] for i in idxs]

@pytest.fixture
def folder(tmp_path): return make_files(tmp_path/'pt', 40)

def make_files(folder, n, shape=(2,3)):
    Path(folder).mkdir()
    for i in range(n): torch.save(torch.full(shape, float(i)), Path(folder)/f'{i:05}.pt')
    return folder

def seen(dl): return sorted(int(o.flatten()[0]) for x,_ in dl for o in x)

class Add(NamedTuple):
    "A random transform that can be sent to a spawned worker"
    high:int=1000
    def __call__(self, x): return x+torch.randint(1, self.high, (1,))

def test_read_once_with_no_workers(folder):
    inner = Files(folder); ds = CachedDataset(inner); inner.n_read = 0
    dl = DataLoader(ds, batch_size=8, shuffle=True)
    assert seen(dl)==list(range(40)) and inner.n_read==40 and ds.memory[:2]==(40,40)
    shutil.rmtree(folder)
    assert seen(dl)==list(range(40)) and inner.n_read==40 and (ds.memory.misses,ds.memory.hits)==(40,40)
    ds.cache.check()

@pytest.mark.parametrize('kwargs', [dict(batch_size=8), dict(batch_size=8, persistent_workers=True), dict(batch_size=None), dict(batch_size=8, multiprocessing_context='fork'),
                                    dict(batch_size=8, prefetch_factor=1)], ids=str)
def test_two_workers_fill_what_everybody_reads(folder, kwargs):
    ds = CachedDataset(Files(folder))
    dl = DataLoader(ds, num_workers=2, **kwargs)
    for x,_ in dl: pass
    shutil.rmtree(folder)
    for x,_ in dl: pass
    assert [int(ds[i][0][0,0]) for i in range(40)]==list(range(40)) and (ds.memory.misses,ds.memory.hits)==(40,80)

def test_subsets_and_splits_share_one_cache(folder):
    ds = CachedDataset(Files(folder))
    a,b = random_split(ds, [30,10])
    assert sorted(seen(DataLoader(a, 8, num_workers=2))+seen(DataLoader(b, 8)))==list(range(40)) and ds.memory.misses==40
    shutil.rmtree(folder)
    assert seen(DataLoader(Subset(ds, range(0,40,2)), 8, num_workers=2))==list(range(0, 40, 2))
    other = CachedDataset(ds.dataset, transform=lambda x: -x, cache=ds.cache)
    assert other[3][0][0,0]==-3 and ds[3][0][0,0]==3 and ds.memory.misses==40

def test_samplers(folder):
    ds = CachedDataset(Files(folder))
    parts = [seen(DataLoader(ds, 4, sampler=DistributedSampler(ds, num_replicas=2, rank=i))) for i in range(2)]
    shutil.rmtree(folder)
    assert sorted(parts[0]+parts[1])==list(range(40))
    assert seen(DataLoader(ds, batch_sampler=BatchSampler(RandomSampler(ds), 8, False), num_workers=2))==list(range(40))

def test_a_batch_is_asked_for_at_once(folder):
    ds = CachedDataset(Many(folder)); ds[2],ds[3]
    assert [int(x[0,0]) for x,_ in ds.__getitems__([3,5,2,4])]==[3,5,2,4] and ds.dataset.asked==[5,4]
    assert ds.__getitems__([])==[]

class Miscounted(Files):
    "Its batches have `extra` samples more than were asked for"
    def __init__(self, folder, extra): super().__init__(folder); self.extra = [extra]*101  # more than is looked at
    def __getitems__(self, idxs): return [self[i] for i in (idxs*2)[:len(idxs)+self.extra[0]]]

@pytest.mark.parametrize('extra', [-1,1])
def test_a_batch_of_the_wrong_length_is_an_error_and_nothing_of_it_is_kept(folder, extra):
    ds = CachedDataset(Miscounted(folder, extra)); ds.dataset.extra[0] = 0; ds[0]
    ds.dataset.extra[0] = extra
    with pytest.raises(ValueError, match=rf'Miscounted\.__getitems__ gave {7+extra} samples for 7 numbers'): list(DataLoader(ds, 8))
    assert ds.memory.n_cached==1

def test_a_batch_may_come_in_any_order_twice_and_as_a_generator(folder):
    class Lazy(Files):
        def __getitems__(self, idxs): return (self[i] for i in idxs)
    ds = CachedDataset(Lazy(folder)); ds[5]
    got = ds.__getitems__([7,5,7,2]); got[0][0].zero_()
    assert [int(x[0,0]) for x,_ in got]==[0,5,7,2] and int(ds[7][0][0,0])==7 and ds.memory.n_cached==3

spawned = '''
import sys, shutil, torch
from torch.utils.data import ConcatDataset, DataLoader, random_split
from torchvision.datasets import DatasetFolder
from fastmem.all import *
from test_dataset import Add, Files, seen
if __name__=='__main__':
    method,folder = sys.argv[1:]
    ds = CachedDataset(Files(folder), transform=Add())
    whole = DatasetFolder(folder+'/..', loader=cached(torch.load), extensions=('.pt',))
    workers = dict(num_workers=2) if method=='fork' else dict(num_workers=1, persistent_workers=True)  # each that is not forked imports fastai
    dl = DataLoader(ConcatDataset([*random_split(ds, [30,10]), whole]), batch_size=8, multiprocessing_context=method, **workers)
    assert len(seen(dl))==80
    shutil.rmtree(folder)
    assert len(seen(dl))==80
    for o in (ds,whole.loader): assert (o.memory.n_cached,o.memory.misses,o.memory.hits)==(40,40,40), o.memory
    ds.cache.check(); whole.loader.cache.check()
'''

@pytest.mark.parametrize('method', ['fork','spawn'])
def test_after_one_pass_the_folder_may_go(folder, tmp_path, method): run_forked(tmp_path, spawned, method, folder)

one_copy = '''
import sys, psutil, torch, numpy as np
from torch.utils.data import DataLoader
from fastmem.all import *
from test_dataset import Files, make_files
def tree(): return sum(o.memory_full_info().pss for o in [psutil.Process(), *psutil.Process().children(recursive=True)] if o.status()!='zombie')
def most(ds): return float(np.median([tree() for i,_ in enumerate(DataLoader(ds, batch_size=20, num_workers=4)) if i>5]))
make_files(sys.argv[1], 400, (250_000,))
stock = Files(sys.argv[1])
most(stock); base = most(stock)
ds = CachedDataset(stock)
most(ds); warm = most(ds)
cached = ds.memory.cached_bytes
assert cached>=400e6, cached
print(f'{cached/1e6:.0f} MB cached, PSS {(warm-base)/1e6:.0f} MB above stock: {(warm-base)/cached:.3f}')
assert warm-base <= 1.5*cached, (warm, base, cached)  # what workers write to of their own comes on top; a second copy would make it 2
'''

def test_four_workers_hold_one_copy(tmp_path): print(run_program(tmp_path, one_copy, tmp_path/'pt'))

def test_it_looks_like_the_dataset_inside(folder):
    ds = CachedDataset(Files(folder))
    assert len(ds)==40 and ds.classes==['even','odd'] and isinstance(ds, Dataset) and 'classes' in dir(ds) and len(ds+ds)==80
    assert repr(ds).startswith('CachedDataset of Files: 40 samples, 0 in memory')
    with pytest.raises(AttributeError, match="'Files' object has no attribute 'nothing'"): ds.nothing
    assert ds[-1][0][0,0]==39 and ds[np.int64(3)][0][0,0]==3 and ds[torch.tensor(4)][0][0,0]==4
    with pytest.raises(IndexError): ds[40]
    assert ds.memory.n_cached==2, 'what has no number of its own is not kept'

def test_a_list_is_a_dataset():
    data = [(torch.ones(2),'a'),(torch.zeros(3),'b')]
    ds = CachedDataset(data)
    assert len(list(ds))==2 and ds[1][0].shape==(3,)
    ds[0][0].zero_(); assert data[0][0][0]==1 and ds[0][0][0]==1

@pytest.mark.parametrize('what', [iter([1]), 3, type('Stream', (IterableDataset,), {'__iter__': iter})()])
def test_what_is_no_map_style_dataset_is_refused(what):
    with pytest.raises(TypeError, match='is no map-style dataset'): CachedDataset(what)

def test_wrapping_again_and_wrong_words_are_refused(folder):
    ds = CachedDataset(Files(folder))
    with pytest.raises(TypeError, match='CachedDataset already'): CachedDataset(ds)
    with pytest.raises(ValueError, match="on_random='maybe'"): CachedDataset([1], on_random='maybe')
    with pytest.raises(ValueError, match="mode='now'"): CachedDataset([1], mode='now')
    with pytest.raises(ValueError, match='give `transforms`, or'): CachedDataset([1], transform=abs, transforms=abs)
    with pytest.raises(ValueError, match='`ImageCache`'): CachedDataset([1], cache=ds.cache, guard=MemoryGuard())
    assert len(CachedDataset([]))==0

def test_it_is_not_pickled_and_a_deep_copy_shares_its_memory(folder):
    ds = CachedDataset(Files(folder)); ds[3]
    with pytest.raises(TypeError, match="can't be pickled: .*the dataset that is wrapped"): pickle.dumps(ds)
    with pytest.raises(TypeError, match="can't be pickled"): torch.save(ds, io.BytesIO())
    twin = copy.deepcopy(ds)
    assert twin.cache is ds.cache and twin.memory.n_cached==1 and twin[3][0][0,0]==3

def test_a_hit_may_be_changed(folder):
    sample = dict(t=torch.ones(3), a=np.ones(3), im=Image.new('RGB', (4,4)), deep=[(torch.ones(1),)])
    for ds in (CachedDataset([sample]), CachedDataset([sample], mode='preload')):
        for _ in range(3):
            got = ds[0]; assert same(got, sample)
            got['t'].zero_(); got['a'][:] = 0; got['im'].paste(9, (0,0,4,4)); got['deep'][0][0].zero_(); got['deep'].append(1); del got['t']
            got['a'].sort()

# --- transforms ---

Pair = namedtuple('Pair', 'x y')
def plus(x): return x+1
def minus(y): return y-1
def both(x, y): return x*2,y*3

@pytest.mark.parametrize('sample,kwargs,want', [((1,2), dict(transform=plus), (2,2)), ((1,2,3), dict(transform=plus, target_transform=minus), (2,1,3)), (Pair(1,2), dict(target_transform=minus), Pair(1,1)),
    ([1,2], dict(transform=plus), [2,2]), (1, dict(transform=plus), 2), ({'a': 1}, dict(transform=len), 1), ((1,2), dict(transforms=both), (2,6)), (Pair(1,2), dict(transforms=both), Pair(2,6)),
    ({'a': 1}, dict(transforms=len), 1), ((1,), dict(transform=plus), (2,)), ((1,2), {}, (1,2))])
def test_transforms_follow_torchvision(sample, kwargs, want):
    ds = CachedDataset([sample], **kwargs)
    for _ in range(2): assert same(ds[0], want)

def test_a_target_transform_needs_a_second_field():
    for sample in (1, (1,), {'a': 1}):
        with pytest.raises(TypeError, match='target_transform needs a tuple'): CachedDataset([sample], target_transform=minus)[0]

@pytest.mark.parametrize('num_workers', [0,2])
def test_random_transforms_stay_random(folder, num_workers):
    ds = CachedDataset(Files(folder), transform=Add())
    draws = [torch.cat([x for x,_ in DataLoader(ds, 8, num_workers=num_workers)]) for _ in range(3)]
    assert not torch.equal(draws[1], draws[2]) and ds.memory.misses==40

# --- two reads ---

class Drawn(Dataset):
    "A tensor that `draw` makes"
    def __init__(self, draw): self.draw = draw
    def __len__(self): return 30
    def __getitem__(self, i): return i,{'x': self.draw(i)}

own = np.random.default_rng(0)
drawn = dict(torch=lambda i: torch.rand(3), numpy=lambda i: np.random.rand(3), python=lambda i: random.random(), own=lambda i: own.random(), flip=lambda i: torch.arange(2).flip(0) if torch.rand(1)<.5 else torch.arange(2),
             nan=lambda i: float('nan') if random.random()<.5 else 1., shape=lambda i: torch.zeros(random.randint(1, 9)), dtype=lambda i: torch.zeros(2, dtype=random.choice([torch.int8,torch.uint8])))

@pytest.mark.parametrize('how', drawn)
def test_two_reads_that_differ_are_an_error(how):
    with pytest.raises(ValueError, match=r"sample 0 of Drawn differs in `sample\[1\]\['x'\]` .*transform=.*on_random='freeze'"): CachedDataset(Drawn(drawn[how]))
    ds = CachedDataset(Drawn(drawn[how]), on_random='freeze')
    assert all(same(ds[5], o) for o in [ds[5] for _ in range(3)])
    CachedDataset(Drawn(drawn[how]), mode='stream')

def missed(datasets):
    "How many of `datasets` are taken for ones that return the same twice"
    def wraps(o):
        try: CachedDataset(o)
        except ValueError: return False
        return True
    return sum(map(wraps, datasets))

def seeded(n, draw):
    for seed in range(n):
        torch.manual_seed(seed)
        yield Drawn(draw)

def test_a_rare_random_transform_is_found():
    assert missed(seeded(100, lambda i: torch.rand(()).item()<.1))==0

def test_a_slow_dataset_with_random_numbers_of_its_own_is_found(monkeypatch):
    monkeypatch.setattr(fastmem.dataset, '_check_s', 0)
    assert missed(Drawn(lambda i, rng=np.random.default_rng(seed): rng.random()<.5) for seed in range(100))<=3

def test_a_dataset_is_checked_with_few_reads(folder, monkeypatch):
    ds = Files(folder); CachedDataset(ds)
    assert ds.n_read==8*3
    monkeypatch.setattr(fastmem.dataset, '_check_s', 0)
    ds = Files(folder); CachedDataset(ds)
    assert ds.n_read==3*3
    CachedDataset(ds, on_random='freeze')
    assert ds.n_read==3*3+3

def states(): return random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()

@pytest.mark.parametrize('draw', [lambda i: (random.random(),np.random.rand(),torch.rand(1)) and i, lambda i: float('nan')])
def test_random_numbers_are_left_as_they_were_and_harmless_draws_accepted(draw):
    before = states()
    CachedDataset(Drawn(draw))
    assert states()==before
    with pytest.raises(ValueError): CachedDataset(Drawn(drawn['torch']))
    assert states()==before

def test_a_sample_that_cannot_be_kept_is_refused_at_the_start():
    with pytest.raises(TypeError, match=r"sample\[1\]\['x'\]: a function can't be cached"): CachedDataset(Drawn(lambda i: lambda: i))

# --- what does not fit, what can't be read ---

def small_guard(): return MemoryGuard(limit_bytes=1_000_000, reserve_bytes=0)

@pytest.fixture
def large(tmp_path): return Files(make_files(tmp_path/'large', 40, (25_000,)))  # 4 MB

@pytest.mark.parametrize('num_workers', [0,2])
def test_what_does_not_fit_is_read_and_told_once(large, num_workers, capfd):
    ds = CachedDataset(large, guard=small_guard())
    dl = DataLoader(ds, 8, num_workers=num_workers)
    for _ in range(2): assert seen(dl)==list(range(40))
    out = capfd.readouterr().out
    assert out.count('fastmem:')==1 and '40 samples need 4' in out and 'is read from the dataset' in out
    assert 5<=ds.memory.n_cached<=10 and ds.cache.arena.used_bytes<1_200_000
    ds.cache.check()

@pytest.mark.parametrize('num_workers', [0,2])
def test_a_loader_that_is_full_tells_once(large, num_workers, capfd):
    class Loaded(Files):
        load = staticmethod(cached(torch.load, guard=small_guard()))
        def __getitem__(self, i): return self.load(self.files[i]),0
    ds = Loaded(large.files[0].parent)
    for _ in range(2): assert seen(DataLoader(ds, 8, num_workers=num_workers))==list(range(40))
    assert capfd.readouterr().out.count('fastmem:')==1 and 5<=ds.load.memory.n_cached<=10

def test_on_full(large, capfd):
    with pytest.raises(MemoryError, match="40 samples need .*on_full='partial'"): CachedDataset(large, guard=small_guard(), on_full='raise')
    ds = CachedDataset(large, guard=small_guard(), on_full='stream')
    for _ in range(2): seen(DataLoader(ds, 8)); ds.purge()
    assert ds.memory.n_cached==0 and 'all are read from the dataset' in capfd.readouterr().out

def test_preload_purge_and_memory(folder, capsys):
    ds = CachedDataset(Files(folder), mode='preload')
    assert ds.memory.n_cached==40 and '40 samples' in capsys.readouterr().out
    n_read = ds.dataset.n_read; ds.preload(); assert ds.dataset.n_read==n_read, 'nothing is read twice'
    assert ds.purge()>0 and ds.purge()==0 and ds.memory.n_cached==0
    seen(DataLoader(ds, 8)); assert ds.memory.n_cached==0, "after a purge, 'preload' waits for the next preload()"
    assert ds.preload(n_workers=2).n_cached==40
    lazy = CachedDataset(Files(folder)); seen(DataLoader(lazy, 8)); lazy.purge(); seen(DataLoader(lazy, 8, num_workers=2))
    assert lazy.memory.n_cached==40 and 'samples  40 of 40 in memory' in repr(lazy.memory)
    with pytest.raises(ValueError, match="mode='stream' keeps nothing"): CachedDataset([1], mode='stream').preload()

def test_checking_what_is_in_memory_audits_the_cache(folder, monkeypatch):
    ds,load = CachedDataset(Files(folder)),cached(torch.load)
    for o in (ds,load):
        assert o.memory.check()==[]
        monkeypatch.setattr(o.cache, 'check', lambda: 1/0)
        with pytest.raises(ZeroDivisionError): o.memory.check()
        monkeypatch.undo()

def test_bad_samples_are_listed_by_preload_and_raised_when_reached(folder, capsys):
    bad = sorted(Path(folder).iterdir())[3]; bad.write_bytes(b'')
    ds = CachedDataset(Files(folder)); ds.preload()
    out = capsys.readouterr().out
    assert "samples that can't be read: 1." in out and 'sample 3: EOFError' in out and ds.memory.n_cached==39
    with pytest.raises(EOFError): ds[3]

def test_a_dropped_dataset_gives_its_memory_back(folder):
    gc.collect(); before = sum(o.used_bytes for o in shared_guard().arenas)
    for _ in range(3): ds = CachedDataset(Files(folder), mode='preload')
    one = ds.cache.arena.used_bytes; gc.collect()
    assert sum(o.used_bytes for o in shared_guard().arenas)-before<=one
    again = [CachedDataset(ds.dataset, cache=ds.cache) for _ in range(3)]
    assert all(o.memory.n_cached==40 for o in again), 'the same dataset in the same cache has the same slots'

def test_purging_while_workers_read_gives_no_wrong_sample(folder):
    ds = CachedDataset(Files(folder))
    for _ in range(5):
        for i,(x,_) in enumerate(DataLoader(ds, 4, num_workers=2)):
            ds.purge()
            assert x[:,0,0].tolist()==list(range(4*i, 4*i+4)) and (x==x[:,:1,:1]).all()
    ds.cache.check()

class Stopped(Files):
    "Reading sample 20 sends a `signal` to the process that reads it, while there is one"
    @property
    def signal(self): return self._count[1] or None
    @signal.setter
    def signal(self, o): self._count[1] = o or 0
    def __getitem__(self, i):
        if i==20 and self.signal is not None: os.kill(os.getpid(), self.signal)
        return super().__getitem__(i)

@pytest.mark.parametrize('read', [lambda ds: ds.preload(), lambda ds: seen(DataLoader(ds, 8))], ids=['preload','loader'])
def test_after_an_interrupt_reading_goes_on(folder, read):
    ds = CachedDataset(Stopped(folder)); ds.dataset.signal = signal.SIGINT
    with pytest.raises(KeyboardInterrupt): read(ds)
    assert 16<=ds.memory.n_cached<=20
    ds.cache.check()
    ds.dataset.signal,ds.dataset.n_read,n_left = None,0,40-ds.memory.n_cached
    read(ds)
    assert ds.memory.n_cached==40 and ds.dataset.n_read==n_left and seen(DataLoader(ds, 8))==list(range(40))

def test_an_interrupt_while_workers_read(folder):
    ds = CachedDataset(Files(folder))
    with pytest.raises(KeyboardInterrupt):
        for i,_ in enumerate(DataLoader(ds, 4, num_workers=2)):
            if i==3: signal.raise_signal(signal.SIGINT)
    gc.collect(); ds.cache.check()
    assert seen(DataLoader(ds, 4, num_workers=2))==list(range(40)) and ds.memory.n_cached==40

killed = '''
import signal, sys
from fastmem.all import *
from test_dataset import DataLoader, Stopped, seen
ds = CachedDataset(Stopped(sys.argv[1])); ds.dataset.signal = signal.SIGKILL
try: seen(DataLoader(ds, 4, num_workers=2)); raise SystemExit('no worker was killed')
except RuntimeError as e: assert 'DataLoader worker' in str(e), e
except (OSError, EOFError): pass  # a batch of it can't be fetched any more
ds.cache.check(); ds.dataset.signal = None
for _ in range(2): assert seen(DataLoader(ds, 4, num_workers=2))==list(range(40))
assert ds.memory.n_cached==40
ds.cache.check()
'''

def test_a_killed_worker_leaves_the_cache_whole(folder, tmp_path):
    run_forked(tmp_path, killed, folder, timeout_s=120)  # in a program of its own: PyTorch raises a worker's death wherever Python is at the time

# --- a loader function ---

def shape_of(file): return tuple(torch.load(file).shape)

def test_loaders_of_one_cache_keep_what_each_makes(folder):
    cache = ImageCache()
    a,b = cached(torch.load, cache=cache),cached(shape_of, cache=cache)
    files = sorted(Path(folder).iterdir())
    assert [a(files[1]).shape for _ in range(2)]==[b(str(files[1])) for _ in range(2)] and cache.arena.hits_misses==(2,2)
    assert cached(torch.load, cache=cache)(files[1]).equal(a(files[1])) and cache.arena.hits_misses==(4,2)
    a(files[2]).zero_(); assert a(files[2])[0,0]==2
    cache.check()

@pytest.mark.parametrize('num_workers', [0,2])
def test_a_file_that_changed_is_loaded_again_and_one_that_is_gone_is_not(folder, num_workers):
    ds = type('Loads', (Files,), {'load': staticmethod(cached(torch.load)), '__getitem__': lambda self,i: (self.load(self.files[i]), 0)})(folder)
    dl = DataLoader(ds, 8, num_workers=num_workers)
    assert seen(dl)==seen(dl)==list(range(40)) and ds.load.cache.arena.hits_misses==(40,40)
    torch.save(torch.full((5,5), 70.), ds.files[7]); ds.files[8].unlink()
    for _ in range(2): assert [int(o[0].flatten()[0]) for o in DataLoader(ds, None, num_workers=num_workers)][6:10]==[6,70,8,9]
    assert ds.load.cache.arena.hits_misses==(119,41) and ds.load.memory.n_cached==40
    ds.load.cache.check()

def test_a_file_that_many_processes_meet_has_one_place(folder):
    files = [str(o) for o in sorted(Path(folder).iterdir())]
    ds = type('Same', (Files,), {'load': staticmethod(cached(torch.load)), '__getitem__': lambda self,i: (self.load(files[i%10]), 0)})(folder)
    for _ in range(3): assert seen(DataLoader(ds, 1, num_workers=4))==sorted(list(range(10))*4)
    assert ds.load.memory.n_items==ds.load.memory.n_cached==10
    ds.load.cache.check()

def test_a_random_loader_is_refused(folder):
    file = next(Path(folder).iterdir())
    with pytest.raises(ValueError, match=f'{file.name} differs in `sample`'): cached(lambda o: torch.rand(2))(file)
    load = cached(lambda o: torch.rand(2), on_random='freeze'); assert load(file).equal(load(file))
    with pytest.raises(FileNotFoundError): cached(torch.load)(folder/'none.pt')
    with pytest.raises(TypeError, match='a function that loads'): cached('a.pt')
    for o in (dict(mode='preload'), dict(on_full='raise')):
        with pytest.raises(ValueError, match='wrap the dataset in `CachedDataset`'): cached(torch.load, **o)

# --- datasets that open a file when they are first read ---

class LazyFile(Dataset):
    "Samples in one file, which each process opens for itself"
    def __init__(self, path, n, item_bytes): self.path,self.n,self.item_bytes,self.file,self.files,self.is_open = path,n,item_bytes,None,{},False
    def __len__(self): return self.n
    def _open(self, i):
        if self.is_open: return self.file if i%2 else self.files['even']
        self.file,self.files['even'],self.is_open = open(self.path, 'rb', buffering=0),open(self.path, 'rb', buffering=0),True
        return self._open(i)
    def __getitem__(self, i):
        file = self._open(i)
        file.seek(i*self.item_bytes)
        return torch.frombuffer(bytearray(file.read(self.item_bytes)), dtype=torch.uint8),i

@pytest.mark.parametrize('how', ['whole','subset','two','preloaded'])
def test_no_open_file_is_shared_with_workers(tmp_path, how):
    "Nor is one left half open"
    n,item_bytes = 1000,5000
    (tmp_path/'samples').write_bytes(b''.join(bytes([i%251])*item_bytes for i in range(n)))
    lazy = LazyFile(tmp_path/'samples', n, item_bytes)
    inner = dict(subset=lambda: Subset(lazy, range(n)), two=lambda: ConcatDataset([Subset(lazy, range(n//2)), Subset(lazy, range(n//2, n))])).get(how, lambda: lazy)()
    ds = CachedDataset(inner, guard=MemoryGuard(limit_bytes=n*item_bytes//8) if how=='preloaded' else None)
    if how=='preloaded': ds.preload()
    assert lazy.file is None and not lazy.files and not lazy.is_open
    for _ in range(2):
        for x,i in DataLoader(ds, batch_size=16, num_workers=2): assert (x==(i%251)[:,None]).all()
    assert (ds[3][0]==3).all() and (ds[4][0]==4).all()
    ds.cache.check()

# --- what the second stranger's review found ---

def test_attributes_of_a_plain_tensor_are_kept():
    x = torch.zeros(2); x.mask,x.note = torch.tensor([1.,2.,3.]),'a'
    got,other = CachedDataset([(x, torch.tensor([7.,8.]))])[0]
    assert type(got) is torch.Tensor and got.mask.tolist()==[1.,2.,3.] and got.note=='a' and other.tolist()==[7.,8.]

@pytest.mark.parametrize('options', [dict(guard=MemoryGuard(limit_bytes=1000)), dict(mode='stream')], ids=['full','stream'])
def test_what_is_not_kept_is_a_copy_too(options):
    X = torch.ones(50, 100)
    ds = CachedDataset(TensorDataset(X), **options)
    for i in range(50): ds[i][0].zero_()
    assert (X==1).all()

def test_an_option_that_samples_do_not_have_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'path'"): CachedDataset([1,2], path='somewhere')
    with pytest.raises(TypeError, match="unexpected keyword argument 'store'"): cached(torch.load, store='decoded')

# --- change this, then that must come ---

class Rows(Dataset):
    "Samples that depend on everything a dataset may have"
    scale = 1
    def __init__(self, n=8): self.x,self.targets,self.transform,self.epoch,self.extra,self.lookup = torch.arange(float(n)),list(range(n)),None,0,[],{}
    def __len__(self): return len(self.x)
    def set_transform(self, f): self.transform = f
    def set_epoch(self, epoch): self.epoch = epoch
    def train(self, mode=True): self.scale = -1 if mode else 1
    def with_transform(self, f): res = copy.copy(self); res.transform = f; return res
    def relabel(self): self.targets = [o+50 for o in self.targets]
    def redraw(self): self.x += 200
    def grow(self): self.x,self.targets = torch.arange(12.)+1,list(range(12))
    def __getitem__(self, i):
        self.n_read = getattr(self, 'n_read', 0)+1  # its own business
        x = self.x[i]*self.scale+1000*self.epoch+sum(self.extra)+self.lookup.get('shift', 0)
        return x if self.transform is None else self.transform(x),self.targets[i]

class Steps:
    "A transform with parts, as torchvision's `Compose`"
    def __init__(self, *steps, shift=0): self.transforms,self.shift = list(steps),shift
    def __call__(self, x):
        for f in self.transforms: x = f(x)
        return x+self.shift

def with_steps(): o = Rows(); o.transform = Steps(plus); return o
def unwrapped(o): return o.dataset if isinstance(o, CachedDataset) else o
def joined(): return ConcatDataset([Subset(Rows(), list(range(5))), Rows()])

changes = dict(
    set_transform=(Rows, lambda o: o.set_transform(plus)), another_lambda=(with_steps, lambda o: o.set_transform(lambda x: x-7)),
    replaced_transform=(with_steps, lambda o: setattr(o, 'transform', minus)), part_of_transform=(with_steps, lambda o: o.transform.transforms.append(plus)), transform_attribute=(with_steps, lambda o: setattr(o.transform, 'shift', 9)),
    set_epoch=(Rows, lambda o: o.set_epoch(3)), attribute=(Rows, lambda o: setattr(o, 'scale', 5)), mode=(Rows, lambda o: o.train()), targets=(Rows, lambda o: setattr(o, 'targets', [9]*8)), relabelled=(Rows, lambda o: o.relabel()),
    in_place_label=(Rows, lambda o: o.targets.__setitem__(2, 70)), in_place_tensor=(Rows, lambda o: o.x.mul_(3)), redrawn=(Rows, lambda o: o.redraw()), appended=(Rows, lambda o: o.extra.append(7)), in_dict=(Rows, lambda o: o.lookup.update(shift=4)),
    longer=(Rows, lambda o: o.grow()), indices=(lambda: Subset(Rows(), [0,1,2]), lambda o: setattr(o, 'indices', [5,6,7,3])), an_index=(lambda: Subset(Rows(), [0,1,2]), lambda o: o.indices.__setitem__(1, 7)),
    inside_a_subset=(lambda: Subset(Rows(), [0,1,2]), lambda o: unwrapped(o).dataset.set_epoch(2)), inside_a_concat=(joined, lambda o: o.datasets[0].dataset.set_transform(plus)), another_part=(joined, lambda o: o.datasets.__setitem__(1, Subset(Rows(), list(range(7,-1,-1))))))

def values(dl): return [(float(x),int(y)) for xs,ys in dl for x,y in zip(xs,ys)]

def passed(datasets, num_workers):
    "{change: samples} of all `datasets`, read by the same workers, which ask their parent for nothing"
    dl = DataLoader(ConcatDataset([Subset(o, range(len(o))) for o in datasets.values()]), 5, num_workers=num_workers)
    got,n = values(dl),0
    return {k: got[n:(n := n+len(o))] for k,o in datasets.items()}

def unlike(a, b): return [k for k in a if a[k]!=b[k]]

@pytest.mark.parametrize('warm', [False,True], ids=['cold','warm'])
@pytest.mark.parametrize('num_workers', [0,2])
def test_change_this_then_that_must_come(num_workers, warm):
    stock,cache = {k: make() for k,(make,_) in changes.items()},ImageCache()
    ours = {k: CachedDataset(make(), cache=cache) for k,(make,_) in changes.items()}  # one cache: address space is for one
    if warm: assert not unlike(passed(ours, num_workers), passed(stock, 0))
    for k,(_,f) in changes.items(): f(stock[k]); f(ours[k])
    want = passed(stock, 0)
    for _ in range(2): assert not unlike(passed(ours, num_workers), want)
    assert [k for k,o in ours.items() if o.memory.n_cached!=len(stock[k])]==[], 'kept again'
    n_misses = cache.arena.hits_misses[1]
    assert not unlike(passed(ours, num_workers), want) and n_misses==cache.arena.hits_misses[1], 'warm again'
    for k,(_,f) in changes.items(): f(stock[k]); f(ours[k].dataset)  # not through the wrapper
    assert not unlike(passed(ours, num_workers), passed(stock, 0))
    cache.check()

def test_what_is_changed_in_turns_is_never_mixed_up():
    stock,ours = Rows(),CachedDataset(Rows())
    for i in range(6):
        for o in (stock,ours): o.set_transform([plus,minus,lambda x, i=i: x*i][i%3])
        part = lambda o: DataLoader(Subset(o, range(8)), 3, num_workers=2*(i%2))
        assert values(part(ours))==values(part(stock))

@pytest.mark.parametrize('num_workers', [0,2])
@pytest.mark.parametrize('on_random', ['raise','freeze'])
def test_a_random_transform_that_is_set_later_is_not_frozen(num_workers, on_random, capfd):
    ours = CachedDataset(Rows(), on_random=on_random)
    dl = DataLoader(ours, 4, num_workers=num_workers)
    values(dl)
    ours.set_transform(lambda x: x*random.random())
    first,second = values(dl),values(dl)
    out = capfd.readouterr().out
    if on_random=='freeze': assert first==second and 'fastmem' not in out
    else: assert first!=second and ours.memory.n_cached==0 and out.count('differs in `sample[0]`')==1 and "transform=…" in out
    ours.set_transform(None)
    assert values(dl)==values(dl)==values(DataLoader(Rows(), 4)) and ours.memory.n_cached==8

def test_transform_is_set_where_one_is():
    inner = Rows(); inner.transform = plus
    ours = CachedDataset(inner)
    assert ours.transform is plus
    ours.transform = minus
    assert inner.transform is minus and ours[3][0]==2
    ours = CachedDataset(Rows(), transform=plus)
    ours.transform = minus
    assert ours.dataset.transform is None and ours.transform is minus and ours[3][0]==2
    ours = CachedDataset(Rows()); ours.transform = plus
    assert ours[3][0]==4 and ours[3][0]==4
    with pytest.raises(AttributeError, match=r'wrap the other dataset'): ours.dataset = Rows()

class Labelled(Dataset):
    "What decides a sample, in each way in which datasets have it"
    def __init__(self, n=3000):
        self.targets,self.order,self.pairs = list(range(n)),np.arange(n),[(i,i+1) for i in range(n)]
        self.data,self.table = np.ones((n,100)),pd.DataFrame(dict(y=range(n)))
        self.config,self.nested = SimpleNamespace(gain=1),{'aug': {'gain': 1}}
    def __len__(self): return len(self.targets)
    def __getitem__(self, i):
        gain = self.config.gain*self.nested['aug']['gain']
        return self.targets[i], int(self.order[i]), self.pairs[i][1], float(self.data[i].sum()), int(self.table['y'].iloc[i]), gain*helper(i)
    def resample(self): np.random.RandomState(0).shuffle(self.order)
    def brighten(self): self.data *= 1.5
    def relabel(self): self.table.loc[3,'y'] = -1

def helper(i): return i

def other_helper(i): return -i

def set_helper(ds): globals()['helper'] = other_helper
def twice(ds): ds.data *= 2

relabelled = dict(targets=lambda o: operator.setitem(o.targets, 3, 90), order=lambda o: operator.setitem(o.order, 3, 90), mask=lambda o: operator.setitem(o.order, o.order==3, 90),
                  pairs=lambda o: operator.setitem(o.pairs, 3, (3,90)), gain=lambda o: setattr(o.config, 'gain', 3), nested=lambda o: operator.setitem(o.nested['aug'], 'gain', 3),
                  resample=lambda o: o.resample(), shuffled=lambda o: random.Random(0).shuffle(o.targets), helper=set_helper)
of_the_whole = dict(brighten=lambda o: o.brighten(), relabel=lambda o: o.relabel(), cells=lambda o: operator.setitem(o.table, 'y', 9), data=twice)

@pytest.mark.parametrize('where', ['the dataset','the wrapper'])
@pytest.mark.parametrize('name', [*relabelled,*of_the_whole])
def test_what_is_changed_in_place_comes(name, where, monkeypatch):
    "What has an element a sample is seen at once; a long array or a table at once through the wrapper, else when an epoch begins"
    monkeypatch.setitem(globals(), 'helper', helper)
    stock,inner = Labelled(),Labelled()
    ours = CachedDataset(inner)
    for i in (3,4): ours[i]
    change = {**relabelled, **of_the_whole}[name]
    change(stock)
    if name!='helper': change(ours if where=='the wrapper' else inner)
    if name in of_the_whole and where=='the dataset': len(ours)
    assert [ours[i] for i in (3,4)]==[stock[i] for i in (3,4)]
    ours.cache.check()

@pytest.mark.parametrize('idxs', [3, np.array([3]), torch.tensor([3]), np.arange(200)==3, -197, [3]], ids=str)
def test_samples_are_forgotten_by_number_or_mask(idxs):
    ours = CachedDataset(Rows(200)); ours[3],ours[4]
    ours.forget(idxs)
    assert ours.memory.n_cached==1
    with pytest.raises(IndexError, match='200 samples'): ours.forget(200)

def test_a_version_reads_samples_again():
    "A value, or a function that is asked with each batch"
    revision,ours = 1,CachedDataset(Rows(200))
    ours[3]
    ours.version = 'b'; ours[3]; assert ours.memory.misses==2
    ours.version = lambda: revision; ours[3]; ours[3]; assert ours.memory.misses==3
    revision = 2; ours[3]; assert ours.memory.misses==4
    ours.cache.check()

scale,settings_of = 1,dict(gain=1)
def load_scaled(file): return scale*settings_of['gain']*helper(int(torch.load(file)[0,0]))

class Opens:
    def __init__(self): self.gain = 1
    def load(self, file): return self.gain*int(torch.load(file)[0,0])

def test_a_cached_function_that_changes_loads_again(folder, monkeypatch):
    "A global that it names, a dict, a helper, the object that it is a method of"
    file,load,o = sorted(Path(folder).iterdir())[3],cached(load_scaled),Opens()
    assert load(file)==3==load(file) and load.memory.hits==1
    monkeypatch.setitem(globals(), 'scale', 2); assert load(file)==6
    monkeypatch.setitem(settings_of, 'gain', 5); assert load(file)==30==load(file)
    monkeypatch.setitem(globals(), 'helper', other_helper); assert load(file)==-30
    bound = cached(o.load); assert bound(file)==3
    o.gain = 2; assert bound(file)==6

def test_a_cached_function_is_called_as_it_is_called_without(folder, capsys):
    class Loads:
        @cached
        def load(self, file): return torch.load(file)
    file = sorted(Path(folder).iterdir())[3]
    assert cached(lambda path: torch.load(path))(path=file)[0,0]==3==Loads().load(file)[0,0]
    assert capsys.readouterr().out.count('not kept')==2
    with pytest.raises(TypeError, match='sample: a .* can.t be cached.*Return what `pickle` takes'): cached(open)(file)
    for f in (lambda: CachedDataset([1], guard=2e9), lambda: cached(len, guard=2e9), lambda: ImageCache(2e9)):
        with pytest.raises(TypeError, match='MemoryGuard'): f()

def test_wrappers_of_one_dataset_see_the_same_changes():
    ours = CachedDataset(Rows()); other = CachedDataset(ours.dataset, transform=plus, cache=ours.cache)
    assert (ours[3][0],other[3][0])==(3,4) and ours.memory.misses==1
    ours.scale = 2; assert (other[3][0],ours[3][0])==(7,6)
    third = CachedDataset(ours.dataset, version=1, cache=ours.cache); assert third[3][0]==6
    ours.scale = 3; assert [o[3][0] for o in (third,ours,other)]==[9,9,10]

def init_worker(i): torch.utils.data.get_worker_info().dataset.scale = i+1

def test_a_dataset_that_is_changed_in_its_workers_is_read_there(capfd):
    stock,ours = Rows(),CachedDataset(Rows())
    for _ in range(2): assert values(DataLoader(ours, 2, num_workers=2, worker_init_fn=init_worker))==values(DataLoader(stock, 2, num_workers=2, worker_init_fn=init_worker))
    assert capfd.readouterr().out.count('was changed in a worker')==1
    assert values(DataLoader(ours, 2))==values(DataLoader(stock, 2))

# --- what is no number ---

many = {'a slice': slice(2, 5), 'a list': [3,1], 'an array': np.arange(3), 'a tensor': torch.tensor([2]), 'a mask': torch.arange(8)>4}

class Numbers(Dataset):
    def __init__(self): self.x = torch.arange(8.)
    def __len__(self): return 8
    def __getitem__(self, i): return self.x[i]

@pytest.mark.parametrize('what', many)
def test_many_at_a_time_are_what_the_dataset_makes_of_them(what, capsys):
    ours = CachedDataset(Numbers())
    for _ in range(2): assert ours[many[what]].equal(Numbers()[many[what]])
    assert capsys.readouterr().out.count('batch_sampler=')==1 and ours.memory.n_cached==0
    with pytest.raises(TypeError, match='batch_sampler='): CachedDataset(Numbers(), transform=plus)[many[what]]

@pytest.mark.parametrize('num_workers', [0,2])
@pytest.mark.parametrize('kwargs', [dict(batch_size=None), dict(batch_size=2)], ids=str)
def test_a_sampler_of_batches(num_workers, kwargs):
    dl = lambda o: DataLoader(o, sampler=BatchSampler(range(8), 4, False), num_workers=num_workers, **kwargs)
    assert all(map(torch.equal, dl(CachedDataset(Numbers())), dl(Numbers())))
    assert len(list(dl(CachedDataset(Numbers()))))==len(list(dl(Numbers())))

def test_keys_that_are_no_numbers_are_the_datasets():
    ours = CachedDataset(dict(a=1, b=2), on_random='freeze')
    assert ours['a']==1
