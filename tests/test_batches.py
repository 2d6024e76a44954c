"How batches are made: by which path, in whose memory, from which targets, and what that costs as the work grows"
import gc, tracemalloc

import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem.loader import FloatPipeline, TargetColumn
from fastmem.arena import BatchMemory
from fasttransform import Pipeline
from helpers import Inverted, batches, photo_folder, random_states

def make(path, item_tfms=None, blocks=(ImageBlock,CategoryBlock), get_y=parent_label, bs=8, **kwargs):
    set_seed(0)
    block = DataBlock(blocks, get_items=get_image_files, get_y=get_y, splitter=RandomSplitter(seed=1), item_tfms=item_tfms, **kwargs)
    return block.dataloaders(path, bs=bs, num_workers=0, device='cpu')

# --- paths ---

paths = dict(crop=Resize(64), squish=Resize(64, method='squish'), pad=Resize(64, method='pad'), rrc=RandomResizedCrop(64), random_crop=RandomCrop(64),
             crop_pad=CropPad(300), flip=[FlipItem(), Resize(64)], dihedral=[DihedralItem(), Resize((48,64))])

@pytest.mark.parametrize('store', ['auto','decoded'])
@pytest.mark.parametrize('tfms', paths)
def test_common_pipelines_are_gathered(tmp_path, tfms, store):
    photo_folder(tmp_path, 6)
    dls = make(tmp_path, paths[tfms], bs=2).in_memory(store=store)
    assert dls.memory.batches=='gathered'
    for _ in dls.train: pass
    for _ in dls.train: pass
    assert dls.memory.hits==len(dls.train_ds)

def points(o): return TensorPoint(torch.rand(3, 2, generator=torch.Generator().manual_seed(int(o.stem)))*200, img_size=(500,375))

itemwise = dict(unknown=dict(item_tfms=[Inverted(), RandomResizedCrop(64)]), unknown_last=dict(item_tfms=[RandomResizedCrop(64), Inverted(order=3)]),
                unknown_crop=dict(item_tfms=[Inverted(), FlipItem(), Resize(64)]), points=dict(item_tfms=[FlipItem(), Resize(64)], blocks=(ImageBlock,PointBlock), get_y=points),
                points_pad=dict(item_tfms=Resize(64, method='pad'), blocks=(ImageBlock,PointBlock), get_y=points))

@pytest.mark.parametrize('what', itemwise)
def test_item_by_item_is_bit_identical(tmp_path, what):
    "Cold and warm, with the same random numbers, and it says why"
    photo_folder(tmp_path, 12, size=(200,150))
    stock = make(tmp_path, bs=4, **itemwise[what]); a = batches(stock, 2); state = random_states()
    ours = make(tmp_path, bs=4, **itemwise[what]).in_memory(store='decoded'); b = batches(ours, 2)
    assert random_states()==state
    assert ours.memory.batches.startswith('item by item: ')
    for x,y in zip(L(a).concat().concat(), L(b).concat().concat()):
        assert all(type(p) is type(q) and torch.equal(p, q) for p,q in zip(x,y))

def test_an_image_that_is_changed_before_resize_is_resized_too(tmp_path):
    "One image is kept resized; the other, which a type transform changes while it is whole, is kept whole"
    photo_folder(tmp_path, 6)
    block = TransformBlock([PILImage.create, lambda o: PILImage(o.transpose(0))], batch_tfms=IntToFloatTensor)
    make_dls = lambda: make(tmp_path, Resize(64), blocks=(block,ImageBlock), get_y=noop, bs=2, n_inp=1)
    a,b = batches(make_dls()),batches(make_dls().in_memory())
    for (x,_),(x1,y1) in zip(L(a).concat().concat(), L(b).concat().concat()): assert torch.equal(x, x1) and y1.shape==x.shape

@pytest.mark.parametrize('tfms', ['rrc','crop'])
def test_batches_of_no_workers_are_those_of_two(tmp_path, tfms):
    "Warm epochs start no process, and give what two workers of stock would have given; edits are made ahead by a thread"
    photo_folder(tmp_path, 24, size=(120,90))
    def make_dls():
        set_seed(0)
        return ImageDataLoaders.from_folder(tmp_path, valid_pct=.2, seed=1, item_tfms=paths[tfms], bs=4, num_workers=2, device='cpu')
    stock = [list(make_dls().train) for _ in range(1)][0]
    dls = make_dls().in_memory(store='decoded', mode='preload')
    set_seed(0); make_dls()  # the random numbers that making them took
    ours = list(dls.train)
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a,b),(c,d) in zip(stock,ours))

# --- memory ---

def test_kept_batches_are_never_written_again(tmp_path):
    photo_folder(tmp_path, 24)
    dls = make(tmp_path, Resize(64), bs=4, batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False)).in_memory(mode='preload')
    kept = [b for _ in range(3) for b in dls.train]
    copies = [x.clone() for x,_ in kept]
    for _ in range(3):
        for x,_ in dls.train: x.zero_()  # a batch is the user's own
    assert all(torch.equal(x, c) for (x,_),c in zip(kept,copies))
    assert len({x.data_ptr() for x,_ in kept})==len(kept)

def test_a_dropped_batch_is_used_again_and_a_part_of_it_keeps_it():
    memory = BatchMemory()
    take = lambda: torch.from_numpy(memory.take((4,1000), np.uint8))
    a = take(); address = a.data_ptr(); del a
    a = take(); assert a.data_ptr()==address
    row = a[1].view(10,100).numpy(); del a
    other = take(); assert other.data_ptr()!=address
    del row
    assert take().data_ptr()==address

def test_a_view_keeps_the_memory_of_its_array():
    "NumPy links a view to whoever owns the bytes, which must not be what is lent out again"
    memory = BatchMemory()
    part = memory.take((4,1000), np.uint8)[:,0]
    assert not memory.free
    part = torch.from_numpy(part)[1:]
    assert not memory.free
    del part
    assert len(memory.free)==1

def test_no_more_than_three_pieces_are_kept():
    memory = BatchMemory()
    held = [memory.take((n,), np.uint8) for n in (10,50,20,40,30)]
    held.clear()
    assert sorted(map(len, memory.free.values()))==[30,40,50]

# --- floats ---

stats = Normalize.from_stats(*imagenet_stats, cuda=False)
class Late(IntToFloatTensor): order = 100

float_tfms = dict(float=[IntToFloatTensor()], normalized=[IntToFloatTensor(), stats], other_div=[IntToFloatTensor(div=3.), stats], masks=[IntToFloatTensor(div_mask=2), stats],
                  one_value=[IntToFloatTensor(), Normalize(torch.full((1,1,1,1),.5), torch.full((1,1,1,1),.3))], not_first=[stats, Late()],
                  flip=[IntToFloatTensor(), Flip(p=1.), stats], nothing=[])

@pytest.mark.parametrize('tfms', float_tfms)
@pytest.mark.parametrize('cls', [TensorImage,TensorImageBW])
def test_floats_are_those_of_stock(tfms, cls):
    x = cls(torch.randint(0, 256, (9,3,33,47), dtype=torch.uint8)); y = TensorMask(torch.randint(0, 9, (9,33,47), dtype=torch.uint8))
    b = x,y,TensorCategory(torch.arange(9))
    stock,ours = Pipeline(float_tfms[tfms]),FloatPipeline(Pipeline(float_tfms[tfms]), BatchMemory())
    want = stock(tuple(o.clone() for o in b)); got = ours(b)
    assert type(got) is type(want) and all(type(p) is type(q) and p.dtype==q.dtype and torch.equal(p, q) and p.stride()==q.stride() for p,q in zip(want,got))
    assert str(ours)==str(stock) and ours.fs==stock.fs

# --- targets ---

def test_a_target_that_changes_is_noticed(tmp_path):
    photo_folder(tmp_path, 12)
    offset = [0.]
    dls = make(tmp_path, Resize(64), blocks=(ImageBlock,RegressionBlock), get_y=lambda o: float(o.stem)+offset[0], bs=4, n_inp=1).in_memory()
    dl = dls.train.new(shuffle=False)
    targets = lambda: torch.cat([y for _,y in dl])
    first = targets()
    assert torch.equal(targets(), first) and dl.targets[1].table is not None
    offset[0] = 100.
    assert torch.equal(targets(), first+100)

# --- bookkeeping ---

def test_bookkeeping_takes_at_most_64_bytes_an_item(tmp_path):
    n = 100_000
    files = photo_folder(tmp_path, 1, classes='0') + [Path(f'/nowhere/{i%10}/{i:07}.jpg') for i in range(1, n)]  # fastai opens the first
    dsets = Datasets(files, [[PILImage.create],[parent_label,Categorize(vocab=list('0123456789'))]], splits=[list(range(n-1)),[n-1]])
    for o in files: str(o)  # what pathlib remembers of a path is not ours
    dls = DataLoaders(*[TfmdDL(dsets.subset(i), bs=64, num_workers=0, after_item=[Resize(32),ToTensor]) for i in (0,1)])
    gc.collect(); tracemalloc.start(); before = tracemalloc.get_traced_memory()[0]
    dls.in_memory()
    target = TargetColumn(dls.train_ds.tls[1]); target[np.arange(64)]
    gc.collect(); taken = tracemalloc.get_traced_memory()[0]-before
    tracemalloc.stop()
    arena = dls.train.cache.arena
    table_bytes = sum(getattr(arena, o).itemsize*(4 if o=='sizes' else 1) for o in ('places','sizes','modes','pixel_bytes'))
    assert taken/n+table_bytes <= 64, (taken/n, table_bytes)
