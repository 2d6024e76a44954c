"All of fastai still works: what users do with DataLoaders and a Learner, on fastmem's"
import os, shutil, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
from fastai.vision.all import *
from fastmem import cache as cache_module
from fastmem.all import *
from helpers import photo, photo_folder

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('photos')
    photo_folder(path, 40)
    return path

def make(path, size=64, **kwargs):
    set_seed(0)
    return ImageDataLoaders.from_folder(path, **{**dict(valid_pct=.2, seed=1, item_tfms=Resize(size), bs=8, num_workers=0, device='cpu'), **kwargs})

def model(n_out=3): return nn.Sequential(nn.Conv2d(3,4,3,stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,n_out))

def learner(dls, **kwargs):
    set_seed(0)
    return Learner(dls, model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, **kwargs)

@pytest.fixture
def dls(folder): return make(folder).in_memory()

@pytest.fixture
def learn(dls, tmp_path): return learner(dls, path=tmp_path)

def passes(dls):
    for dl in dls.loaders:
        for _ in dl: pass

# --- DataLoaders ---

def test_show_and_decode(dls):
    dls.show_batch(max_n=4); dls.show_batch(max_n=2, unique=True); dls.valid.show_batch()
    decoded = dls.decode_batch(dls.one_batch(), max_n=2)
    assert len(decoded)==2 and decoded[0][1] in 'abc'
    assert dls.vocab==['a','b','c'] and dls.c==3

def test_summary_and_blocks(folder, capsys):
    block = DataBlock((MemImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(64))
    block.summary(folder, bs=2)
    assert 'Resize' in capsys.readouterr().out

def test_loaders_from_loaders_share_the_cache(dls):
    passes(dls)
    for dl in (dls.train.new(bs=3), dls.valid.new(shuffle=True), dls.train.new(num_workers=2), dls.new(), dls.train.new(dls.valid_ds)):
        assert isinstance(dl, MemDL) and dl.cache is dls.train.cache
        for _ in dl: pass
    assert dls.memory.misses==40
    assert type(dls.train.new(cls=TfmdDL)) is TfmdDL

def test_test_dl(dls, folder):
    passes(dls)
    files = get_image_files(folder)[:10]
    before = dls.memory
    plain,labelled = dls.test_dl(files),dls.test_dl(files, with_labels=True)
    assert first(plain)[0].shape==(8,3,64,64) and len(first(plain))==1 and len(first(labelled))==2
    assert dls.memory.misses==before.misses, 'files that are there are read from memory'

def test_test_dl_keeps_nothing_unless_asked(dls, tmp_path):
    passes(dls)
    files = photo_folder(tmp_path, 9)
    n = dls.train.cache.arena.ready(np.arange(100)).sum()
    for _ in dls.test_dl(files): pass
    assert dls.train.cache.arena.ready(np.arange(100)).sum()==n
    for _ in dls.test_dl(files, mode='lazy'): pass
    assert dls.train.cache.arena.ready(np.arange(100)).sum()==n+9

def test_in_memory_again_with_other_options(dls):
    passes(dls)
    old = dls.train.cache
    assert dls.in_memory(store='decoded') is dls
    assert dls.train.cache is not old and dls.memory.store=='decoded' and dls.memory.n_cached==0

def test_weighted_loader_keeps_its_sampling(folder):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(64), splitter=RandomSplitter(seed=1))
    wgts = [0 if o.parent.name=='a' else 1 for o in get_image_files(folder)]
    dls = block.weighted_dataloaders(folder, wgts, bs=8, num_workers=0, device='cpu').in_memory()
    a = dls.vocab.o2i['a']
    for _ in range(2): assert all((y!=a).all() for _,y in dls.train)
    assert isinstance(dls.train, WeightedDL) and dls.memory.hits>0

def test_callbacks_that_add_transforms(dls):
    dls.add_tfms([Normalize.from_stats(*imagenet_stats, cuda=False)], 'after_batch')
    assert dls.one_batch()[0].min()<0

# --- Learner ---

def test_train_predict_and_interpret(learn, folder):
    learn.fit(1)
    learn.fine_tune(1)
    learn.lr_find(num_it=5, show_plot=False)
    preds,targs = learn.get_preds()
    assert preds.shape==(8,3) and len(targs)==8
    learn.get_preds(ds_idx=0); learn.validate(); learn.tta(n=1)
    learn.show_results(max_n=2)
    ClassificationInterpretation.from_learner(learn).plot_top_losses(2)

def test_predict_takes_what_stock_takes(learn, folder):
    f = get_image_files(folder)[0]
    stock = Learner(make(folder), learn.model, loss_func=CrossEntropyLossFlat())
    items = [f, str(f), PILImage.create(f), f.read_bytes(), np.array(PILImage.create(f))]
    with learn.no_bar(), stock.no_bar():
        for item in items:
            (ours,_,p),(theirs,_,q) = learn.predict(item),stock.predict(item)
            assert ours==theirs and torch.allclose(p, q, atol=1e-2), type(item)
    assert learn.dls.memory.n_cached<=1

def test_stock_and_fastmem_train_alike(folder, tmp_path):
    losses = []
    for dls in (make(folder), make(folder).in_memory(store='decoded')):
        learn = learner(dls, path=tmp_path)
        set_seed(3)
        with learn.no_bar(), learn.no_logging(): learn.fit(3)
        losses.append([o.item() for o in learn.recorder.losses])
    assert losses[0]==losses[1], 'bit-identical batches give bit-identical losses'

def test_export_needs_no_fastmem(folder, tmp_path):
    sizes = {}
    for name,dls in dict(stock=make(folder), mem=make(folder).in_memory(mode='preload'), block=DataBlock((MemImageBlock, CategoryBlock),
            get_items=get_image_files, get_y=parent_label, item_tfms=Resize(64)).dataloaders(folder, bs=8, num_workers=0, device='cpu')).items():
        learn = learner(dls, path=tmp_path)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        learn.export(f'{name}.pkl')
        sizes[name] = (tmp_path/f'{name}.pkl').stat().st_size
        learn.dls.one_batch()  # and it goes on
    assert all(.9<v/sizes['stock']<1.1 for v in sizes.values()), sizes
    assert b'cfastmem' not in (tmp_path/'mem.pkl').read_bytes(), 'a pickled name of ours'
    code = f'''
import sys
sys.modules['fastmem'] = None  # an import of it fails, as where it is not installed
from fastai.vision.all import *
for name in ('mem','block'):
    learn = load_learner('{tmp_path}/'+name+'.pkl')
    with learn.no_bar(): res = learn.predict('{get_image_files(folder)[0]}')
    assert res[0] in 'abc' and type(learn.dls.train) is TfmdDL, res
'''
    # the model's class lives in nn, the metric in fastai: nothing of this file is needed
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)

# --- one cache for many ---

@pytest.fixture
def read_files(monkeypatch):
    "The files that fastmem reads, in order"
    res,make_pixels = [],cache_module.make_pixels
    monkeypatch.setattr(cache_module, 'make_pixels', lambda file,recipe: (res.append(Path(file)), make_pixels(file, recipe))[1])
    return res

def test_folds_read_each_file_once(folder, read_files):
    cache,files = ImageCache(),get_image_files(folder)
    for k in range(4):
        block = DataBlock((ImageBlock, CategoryBlock), get_y=parent_label, item_tfms=Resize(64), splitter=IndexSplitter(list(range(k,len(files),4))))
        passes(block.dataloaders(files, bs=8, num_workers=0, device='cpu').in_memory(cache=cache))
    assert sorted(read_files)==sorted(files)
    cache.check()

def test_progressive_resizing_reads_once_for_each_geometry(folder, read_files):
    cache = ImageCache()
    dls = {size: make(folder, size).in_memory(cache=cache) for size in (32,64)}
    learn = learner(dls[32])
    for size in (32,64,32):
        learn.dls = dls[size]
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert len(read_files)==2*40
    read_files.clear()
    cache = ImageCache()
    for size in (32,64): passes(make(folder, size).in_memory(cache=cache, store='decoded'))
    assert len(read_files)==40, 'whole images serve every size'

def test_a_cache_has_its_own_guard(folder):
    with pytest.raises(ValueError, match='guard'): make(folder).in_memory(cache=ImageCache(), guard=MemoryGuard())

# --- every factory ---

def factories(path):
    files = get_image_files(path)
    df = pd.DataFrame(dict(name=[str(o.relative_to(path)) for o in files], label=[o.parent.name for o in files]))
    df.to_csv(path/'labels.csv', index=False)
    kwargs = dict(valid_pct=.2, seed=1, item_tfms=Resize(64), bs=8, num_workers=0, device='cpu')
    return dict(
        from_folder=lambda: ImageDataLoaders.from_folder(path, **kwargs),
        from_name_func=lambda: ImageDataLoaders.from_name_func(path, files, str_len, **kwargs),
        from_path_func=lambda: ImageDataLoaders.from_path_func(path, files, parent_label, **kwargs),
        from_name_re=lambda: ImageDataLoaders.from_name_re(path, files, r'(\d)\.jpg$', **kwargs),
        from_df=lambda: ImageDataLoaders.from_df(df, path, **kwargs),
        from_csv=lambda: ImageDataLoaders.from_csv(path, **kwargs),
        from_lists=lambda: ImageDataLoaders.from_lists(path, files, list(df.label), **kwargs),
        block=lambda: DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(64),
                                splitter=RandomSplitter(seed=1)).dataloaders(path, bs=8, num_workers=0, device='cpu'))

def str_len(s): return str(len(s))

@pytest.mark.parametrize('name', ['from_folder','from_name_func','from_path_func','from_name_re','from_df','from_csv','from_lists','block'])
def test_every_factory(folder, tmp_path, name):
    shutil.copytree(folder, path := tmp_path/'copy')
    dls = factories(path)[name]().in_memory()
    assert dls.memory.batches=='gathered'
    passes(dls); shutil.rmtree(path); passes(dls)
    assert (dls.memory.n_cached,dls.memory.misses,dls.memory.hits)==(40,40,40)

def test_segmentation(tmp_path):
    files = photo_folder(tmp_path/'images', 10)
    (tmp_path/'masks').mkdir()
    for i,o in enumerate(files): Image.fromarray((np.asarray(photo(i, PILImage.create(o).size))[...,0]//90)).save(tmp_path/f'masks/{o.stem}.png')
    dls = SegmentationDataLoaders.from_label_func(tmp_path, files, lambda o: tmp_path/f'masks/{o.stem}.png', codes=['x','y','z'], valid_pct=.2, seed=1,
                                                  item_tfms=Resize(64), bs=4, num_workers=0, device='cpu').in_memory()
    passes(dls); dls.show_batch()
    assert dls.memory.n_cached==20 and dls.memory.batches=='gathered'

# --- errors ---

@pytest.mark.parametrize('option', [dict(mode='always'), dict(store='png'), dict(on_full='crash'), dict(on_error='ignore')])
def test_a_wrong_word_names_itself_and_the_right_ones(folder, option):
    (name,value), = option.items()
    dls = make(folder); before = list(dls.loaders)
    with pytest.raises(ValueError, match=f"{name}='{value}': it is one of"): dls.in_memory(**option)
    assert dls.loaders==before

def test_no_images_says_what_was_looked_for():
    dls = DataLoaders.from_dsets(list(range(10)), list(range(4)), bs=2, num_workers=0)
    with pytest.raises(TypeError, match='looked for the `create` of an image class'): dls.in_memory()

def test_memory_before_in_memory_says_what_to_do(folder):
    for f in (lambda o: o.memory, lambda o: o.preload(), lambda o: o.purge()):
        with pytest.raises(RuntimeError, match=r'call `dls.in_memory\(\)` first'): f(make(folder))

def test_resized_without_a_resize(folder):
    with pytest.raises(ValueError, match='needs a `Resize`'): make(folder, item_tfms=RandomResizedCrop(64)).in_memory(store='resized')

def test_size_keeps_a_short_side(folder):
    dls = make(folder, item_tfms=RandomResizedCrop(32)).in_memory(size=64, mode='preload')
    assert dls.memory.store=='resized' and (dls.train.cache.arena.sizes[:40,:2].min(1)==64).all()
    assert dls.one_batch()[0].shape==(8,3,32,32)

def test_stats_as_text_and_html(dls):
    passes(dls)
    assert 'images' in repr(dls.memory) and '<table>' in dls.memory._repr_html_() and dls.memory.hit_rate==0.
    assert '<' not in repr(dls.memory)
