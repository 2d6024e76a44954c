"fastai v1's lines on fastai v2: the batches of stock, from memory once they were read, whatever the source, the split and the labels"
import shutil, subprocess, sys

import pandas as pd
import pytest
from fastai.vision.all import *
from fastai.vision.gan import InvisibleTensor
from fastmem.all import *
from helpers import batches, photo, photo_folder

n_files = 24

@pytest.fixture(scope='module')
def original(tmp_path_factory):
    "Photos in train/ and valid/ by class, a smaller one and a mask of each, two to test on, and two tables"
    path = tmp_path_factory.mktemp('original')
    files = photo_folder(path/'train', 16, size=(48,40)) + photo_folder(path/'valid', n_files, size=(48,40))[16:]
    for o in path.glob('valid/*/*'):
        if int(o.stem)<16: o.unlink()
    for folder in ('small','masks','test'): (path/folder).mkdir()
    for o in files:
        im = Image.open(o)
        im.resize((8,8)).save(path/'small'/o.name); im.convert('L').point(lambda v: v>100).save(path/'masks'/f'{o.stem}.png')
    for i in range(2): photo(i, (48,40)).save(path/f'test/{i}.jpg')
    table(files, path).to_csv(path/'labels.csv', index=False)
    (path/'valid.txt').write_text('\n'.join(o.name for o in files[16:]))
    return path

def table(files, path):
    return pd.DataFrame(dict(name=[str(o.relative_to(path).with_suffix('')) for o in files], tags=[o.parent.name+(' few' if i%2 else '') for i,o in enumerate(files)],
                             is_valid=['valid' in o.parts for o in files], x=[i/4 for i in range(len(files))], few=[i%2 for i in range(len(files))]))

@pytest.fixture
def path(original, tmp_path):
    "A copy that may be deleted"
    return Path(shutil.copytree(original, tmp_path/'data'))

# --- what there is to write ---

folders = dict(include=['train','valid'])
def from_folder(cls, path, **kwargs): return cls.from_folder(path, **folders, **kwargs)
def from_csv(cls, path, **kwargs): return cls.from_csv(path, 'labels.csv', suffix='.jpg', **kwargs)
def from_df(cls, path, **kwargs): return cls.from_df(pd.read_csv(path/'labels.csv'), path, cols='name', suffix='.jpg', **kwargs)
def from_list(cls, path, **kwargs): return cls(get_image_files(path, folders=['train','valid']), path=path, **kwargs)
sources = dict(folder=from_folder, csv=from_csv, df=from_df, list=from_list,
               grey=partial(from_folder, convert_mode='L'), filtered=lambda *a, **k: from_folder(*a, **k).filter_by_func(lambda o: int(o.stem)%3),
               rand=lambda *a, **k: from_folder(*a, **k).filter_by_rand(.8, seed=1), partial=lambda *a, **k: from_folder(*a, **k).use_partial_data(.8, seed=1),
               by_folder=lambda cls, path, **k: cls.from_folder(path, **k).filter_by_folder(exclude=['small','masks','test']))

splits = dict(none=lambda o: o.split_none(), rand=lambda o: o.split_by_rand_pct(.3, seed=1), subsets=lambda o: o.split_subsets(.5, .3, seed=1),
              folder=lambda o: o.split_by_folder(), idx=lambda o: o.split_by_idx([1,3,5]), idxs=lambda o: o.split_by_idxs(list(range(10)), [15,11]),
              files=lambda o: o.split_by_files([p.name for p in o.items[:7]]), fname_file=lambda o: o.split_by_fname_file('valid.txt'),
              func=lambda o: o.split_by_valid_func(lambda p: int(p.stem)%4==0), df=lambda o: o.split_from_df('is_valid'))

def mask_of(o): return o.parents[2]/'masks'/f'{o.stem}.png'
def small_of(o): return o.parents[2]/'small'/o.name
labels = dict(folder=lambda o: o.label_from_folder(), func=lambda o: o.label_from_func(lambda p: int(p.stem)%2), re=lambda o: o.label_from_re(r'(\d)\.jpg$', classes=list('0123456789')),
              df=lambda o: o.label_from_df('few'), tags=lambda o: o.label_from_df(1, label_delim=' '), one_hot=lambda o: o.label_from_df(['is_valid','few']),
              float=lambda o: o.label_from_df('x'), floats=lambda o: o.label_from_df(['x','few'], label_cls=FloatList), int_floats=lambda o: o.label_from_df('few', label_cls=FloatList),
              const=lambda o: o.label_const('a'), empty=lambda o: o.label_empty(), image=lambda o: o.label_from_func(small_of, label_cls=ImageList),
              same=lambda o: o.label_from_func(noop, label_cls=MemoryImageList), grey=lambda o: o.label_from_func(small_of, label_cls=ImageList, convert_mode='L'),
              mask=lambda o: o.label_from_func(mask_of, label_cls=SegmentationLabelList, classes=['dark','light']))

def make(labelled, num_workers=0, size=32, **kwargs):
    set_seed(0)
    return labelled.transform(size=size).databunch(bs=4, num_workers=num_workers, device='cpu', **kwargs)

def same_batches(a, b):
    assert len(a)==len(b)>0
    for x,y in zip(a, b): assert len(x)==len(y) and all(type(p) is type(q) and torch.equal(p, q) for p,q in zip(x, y))

def check_warm(make_labelled, path, num_workers):
    "All three lists give the batches of stock; the two that keep images need the folder for one pass, or to load, and no longer"
    stock = make(make_labelled(ImageList), num_workers)
    assert type(stock.train) is TfmdDL
    want = [L(o).concat() for o in batches(stock, 2)]
    lazy = make(make_labelled(MemoryImageList, store='decoded'), num_workers)
    lists = make_labelled(ImageListInMemory).load_data()
    loaded = make(lists, num_workers)
    set_seed(0); make(make_labelled(ImageList), num_workers)  # the random numbers that making them took
    got = [L(batches(lazy)[0]).concat()]
    shutil.rmtree(path)
    got += [L(batches(lazy)[0]).concat()]
    for a,b in zip(want, got): same_batches(a, b)
    assert lists.loaded
    set_seed(0); again = L(batches(loaded)[0]).concat()
    assert len(again)==len(want[0]) and loaded.memory.misses==0 and loaded.memory.store=='decoded'

@pytest.mark.parametrize('num_workers', [0,2])
@pytest.mark.parametrize('source', sources)
def test_sources(path, source, num_workers):
    check_warm(lambda cls, **kwargs: sources[source](cls, path, **kwargs).split_by_rand_pct(.3, seed=1).label_from_folder(), path, num_workers)

@pytest.mark.parametrize('num_workers', [0,2])
@pytest.mark.parametrize('split', splits)
def test_splits(path, split, num_workers):
    check_warm(lambda cls, **kwargs: splits[split](from_df(cls, path, **kwargs)).label_from_folder(), path, num_workers)

@pytest.mark.parametrize('num_workers', [0,2])
@pytest.mark.parametrize('label', labels)
def test_labels(path, label, num_workers):
    check_warm(lambda cls, **kwargs: labels[label](from_df(cls, path, **kwargs).split_by_idx(range(16,24))), path, num_workers)
