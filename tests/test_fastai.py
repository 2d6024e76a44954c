"All of fastai still works: what users do with DataLoaders and a Learner, on fastmem's"
import shutil
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pytest
from fastai.vision.all import *
from fastmem import cache as cache_module
from fastmem.all import *
from helpers import photo, photo_folder, run_forked

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
    run_forked(tmp_path, code)

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

# --- what is not as usual ---

@pytest.mark.parametrize('shared', [False,True])
def test_a_block_without_options_keeps_the_validation_set_too(folder, shared):
    block = DataBlock((MemImageBlock(cache=ImageCache()) if shared else MemImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(64), splitter=RandomSplitter(seed=1))
    dls = block.dataloaders(folder, bs=8, num_workers=0, device='cpu')
    passes(dls); before = dls.memory; passes(dls)
    assert before.n_cached==before.n_items==40 and dls.memory.misses==before.misses

def test_options_of_two_blocks_are_joined(folder):
    dls = DataBlock((MemImageBlock(mode='preload'), MemMaskBlock(store='decoded')), item_tfms=Resize(16)).dataloaders(
        get_image_files(folder), bs=8, num_workers=0, device='cpu')
    assert (dls.memory.mode,dls.memory.store)==('preload','decoded')

def test_block_preloads_with_a_report(folder, capsys):
    block = DataBlock((MemImageBlock(mode='preload'), CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(64))
    dls = block.dataloaders(folder, bs=8, num_workers=0, device='cpu')
    first(dls.train)
    assert 'images/s' in capsys.readouterr().out

def test_a_box_is_never_a_rounding_error_outside(tmp_path):
    for i,size in enumerate([(650,260),(870,232)]): Image.new('RGB', size, (9,99,199)).save(tmp_path/f'{i}.jpg')
    files = get_image_files(tmp_path)
    dls = ImageDataLoaders.from_lists(tmp_path, files, ['a','a'], valid_pct=.5, item_tfms=Resize(224), bs=1, num_workers=0, device='cpu').in_memory()
    passes(dls)
    assert dls.memory.n_cached==2

class Crop20(Transform):
    def encodes(self, o:PILImage): return o.crop_pad(20)

def whole(dls): return torch.cat([x.as_subclass(torch.Tensor) for x,_ in dls.valid])

def same_as_stock(make_dls, change=noop, **kwargs):
    stock,ours = make_dls(),make_dls().in_memory(**kwargs)
    passes(ours)
    for o in (stock,ours): change(o)
    a,b = whole(stock),whole(ours)
    return a.shape==b.shape and (a.float()-b.float()).abs().mean()<.01*max(1, a.float().abs().max())

def test_a_type_transform_after_opening(folder):
    files = get_image_files(folder)
    make_dls = lambda: Datasets(files, [[PILImage.create, Crop20()], [parent_label, Categorize()]], splits=RandomSplitter(seed=1)(files)).dataloaders(
        after_item=[Resize(16), ToTensor()], bs=8, num_workers=0, device='cpu')
    assert same_as_stock(make_dls)
    with pytest.raises(ValueError, match='Crop20'): make_dls().in_memory(store='resized')

@pytest.mark.parametrize('change', [
    lambda dls: setattr(dls.valid, 'after_item', Pipeline([Resize(32), ToTensor()])),
    lambda dls: setattr(dls.valid.after_item.fs[0], 'size', fastuple(32,32)),
    lambda dls: setattr(dls.valid, 'after_item', Pipeline([RandomResizedCrop(32), ToTensor()])),
    lambda dls: dls.valid.after_item.add(CropPad(300)),
    lambda dls: setattr(dls.valid.dataset.tls[0], 'items', list(dls.valid.dataset.tls[0].items)[::-1])])
def test_item_transforms_and_items_may_change_later(folder, change):
    assert same_as_stock(lambda: make(folder), change)

def test_a_loader_that_makes_its_own_items_is_refused(folder):
    class Mine(TfmdDL):
        def create_item(self, s): return super().create_item(s)
    dls = DataLoaders(Mine(make(folder).train_ds, bs=4, num_workers=0, after_item=[Resize(16), ToTensor()]))
    with pytest.raises(TypeError, match='Mine has a `create_item` of its own'): dls.in_memory()

def test_targets_that_change_are_asked_for_again(folder):
    files,labels = get_image_files(folder),{}
    labels.update({o: 0. for o in files})
    dls = DataBlock((ImageBlock, RegressionBlock), get_y=labels.get, item_tfms=Resize(16)).dataloaders(files, bs=8, num_workers=0, device='cpu').in_memory()
    for _ in dls.train: pass
    labels.update({o: 1. for o in files})
    assert all((y==1).all() for _,y in dls.train)

def test_targets_of_other_lengths(folder):
    files = get_image_files(folder)
    dls = DataBlock((ImageBlock, TransformBlock), get_y=lambda o: tensor([1]*(1+int(o.stem)%3)), item_tfms=Resize(16)).dataloaders(
        files, bs=1, num_workers=0, device='cpu').in_memory()
    for _ in range(2): assert {len(y[0]) for _,y in dls.train}=={1,2,3}

def test_a_missing_target_is_raised_when_it_is_reached(folder):
    files = sorted(get_image_files(folder))
    def get_y(o): return tensor(1.) if o!=files[20] else load_image(folder/'missing.png')
    dls = DataBlock((ImageBlock, TransformBlock), get_y=get_y, item_tfms=Resize(16), splitter=IndexSplitter([0])).dataloaders(
        files, bs=4, num_workers=0, device='cpu', shuffle=False).in_memory()
    assert dls.memory.n_items==40
    batches = iter(dls.train)
    for _ in range(4): next(batches)
    with pytest.raises(FileNotFoundError): list(batches)

class PILAny(PILImage): _open_args = {}

def test_modes_that_are_not_kept(tmp_path):
    files = photo_folder(tmp_path, 6)
    for o in files: PILImage.create(o).convert('P').save(o.with_suffix('.png')); o.unlink()
    files = get_image_files(tmp_path)
    dls = ImageDataLoaders.from_lists(tmp_path, files, ['a']*6, valid_pct=.5, seed=1, img_cls=PILAny, item_tfms=Resize(16), bs=3, num_workers=0, device='cpu').in_memory()
    assert first(dls.train)[0].shape==(3,1,16,16)

def test_a_deep_copy_stays_in_memory(dls):
    passes(dls)
    copied = deepcopy(dls)
    passes(copied)
    assert copied.train.cache is dls.train.cache and dls.memory.misses==40

def test_stream_is_not_preloaded(folder):
    with pytest.raises(ValueError, match="mode='stream' keeps nothing"): make(folder).in_memory(mode='stream').preload()

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
