"The grid against the crops of stock's `Resize`, tried over many sizes; and what a plan promises against what is then taken"

import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem.cache import *
from fastmem.learner import plan_loaders
from fastmem.recipe import *
from fastmem.plan import *
from helpers import *

class Traced(Image.Image):
    "An image of a size, without pixels, that remembers which crop it was asked for"
    def __init__(self, full):
        super().__init__()
        self._size = full
    def crop_pad(self, size, left_top, **kwargs):
        self.asked = np.array(size),np.array(left_top)
        return self

def stock_crop(full, size, pcts):
    "(width, height) and (left, top) of what stock's `Resize` crops"
    resize,im = Resize(size[::-1]),Traced(full)
    resize.pcts = pcts
    super(RandTransform, resize).__call__(im, split_idx=0)
    return im.asked

lengths = 1,2,3,5,8,13,21,31,32,33,34,47,63,64,65,100,127,128,129,224,256,333,375,500,640,1000,1999
fulls = [(w,h) for w in lengths for h in lengths]
sizes = (1,1),(7,7),(32,32),(64,48),(33,57),(224,224),(8,300)
places = [(.5,.5),(0.,0.),(1-1e-9,1-1e-9),(.25,.8),(.617,.033)]

@pytest.mark.parametrize('size', sizes, ids=str)
def test_grid_lies_where_stock_crops(size):
    "The centre window is stock's validation crop, any other lies less than a pixel of the grid from stock's, and all inside grid and source"
    columns = np.array(fulls).T
    grid,box = (np.stack(np.broadcast_arrays(*o), -1) for o in aligned_grid(columns, size))
    step = (box[:,2:]-box[:,:2])/grid  # source pixels per pixel of the grid, along x and y
    assert (grid>=size).all() and (box[:,:2]>=-1e-6).all() and (box[:,2:]<=columns.T+1e-6).all()
    for pcts in places:
        window = np.stack(grid_window(columns, size, pcts), -1)
        assert (window>=0).all() and (window+size<=grid).all()
        stock_size,stock_at = (np.stack(o) for o in zip(*[stock_crop(o, size, pcts) for o in fulls]))
        opened = (stock_size>0).all(1)  # of a line of one pixel, stock may crop nothing
        far = np.abs(box[:,:2]+window*step - stock_at)[opened]
        assert np.allclose((step*size)[opened], stock_size[opened])
        assert (far<1e-6).all() if pcts==(.5,.5) else (far<step[opened]).all()
        inside = (0<window)&(window+size<grid)  # elsewhere the grid ends within a pixel of the source's edge
        assert (far<=.5*step[opened]+1e-6)[inside[opened]].all()

@pytest.mark.parametrize('size', sizes, ids=str)
def test_grid_of_one_is_grid_of_many(size):
    columns = np.array(fulls).T
    for f in (lambda o: aligned_grid(o, size)[0], lambda o: aligned_grid(o, size)[1], lambda o: grid_window(o, size, (.3,.9)),
              Recipe(method='crop', size=size).stored_size, Recipe(method='short', size=size).stored_size):
        many = np.stack(np.broadcast_arrays(*f(columns)), -1)
        assert np.array_equal(many[::7], [np.stack(f(o)) for o in fulls[::7]])

@pytest.mark.parametrize('size', sizes, ids=str)
@pytest.mark.parametrize('method', [None,'crop','squish','pad','short'])
def test_stored_size(method, size):
    w,h = np.array(fulls).T
    W,H = Recipe(method=method, size=size).stored_size((w,h))
    if method is None: assert (W==w).all() and (H==h).all()
    elif method in ('squish','pad'): assert (W==size[0]).all() and (H==size[1]).all()
    elif method=='crop': assert ((W==size[0])|(H==size[1])).all() and (W>=size[0]).all() and (H>=size[1]).all()
    else:
        assert (np.minimum(W,H)==np.minimum(size[0], np.minimum(w,h))).all()
        assert (np.abs(W-w*np.minimum(1, size[0]/np.minimum(w,h))) <= .5).all()

@pytest.mark.parametrize('recipe', [Recipe(method=o, size=(64,48)) for o in (None,'crop','squish','pad')]+[Recipe(method='short', size=(64,64))],
                         ids=lambda o: str(o.method))
@pytest.mark.parametrize('full', [(500,375),(200,333),(64,48),(40,30),(900,20)], ids=str)
def test_pixels_have_the_stored_size(recipe, full, tmp_path):
    for file in (tmp_path/'a.jpg', tmp_path/'a.png'):
        photo(0, full).save(file)
        assert tuple(make_pixels(file, recipe).im.size)==tuple(int(o) for o in recipe.stored_size(full))

# What a plan promises

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('plan')
    photo_folder(path, 60)
    return path

def loaders(folder, item_tfms, cls=PILImage, **kwargs):
    return ImageDataLoaders.from_folder(folder, valid_pct=.2, bs=1, item_tfms=item_tfms, img_cls=cls, num_workers=0, device='cpu')

@pytest.mark.parametrize('cls', [PILImage,PILImageBW])
@pytest.mark.parametrize('options', [dict(item_tfms=Resize(128)), dict(item_tfms=Resize((96,192))), dict(item_tfms=Resize(128, method='squish')),
                                     dict(item_tfms=Resize(128), store='decoded'), dict(item_tfms=None), dict(item_tfms=None, size=160)],
                         ids=['crop','rectangle','squish','decoded','whole','short'])
@pytest.mark.parametrize('n', [256,25], ids=['all','sampled'])
def test_probe_foretells_what_is_used(options, cls, n, folder, capsys):
    "Within a tenth of the RAM that is then taken, sampled or not; exact in pixels if every header was read"
    item_tfms,options = options['item_tfms'],{k:v for k,v in options.items() if k!='item_tfms'}
    dls = loaders(folder, item_tfms, cls).in_memory(**options)
    plan = probe(folder, n=n, recipe=first(dls.train.columns.values()).recipe)
    stats,used_bytes = dls.preload(),dls.train.cache.arena.used_bytes
    assert stats.cached_frac==1 and plan.n_items==60
    if n==256: assert plan.total_bytes==stats.cached_bytes and plan.error_frac==0
    assert abs(plan.total_bytes-stats.cached_bytes) < .1*stats.cached_bytes
    assert abs(plan.total_bytes-used_bytes) < .1*used_bytes

def test_probe_by_size_is_what_resize_takes(folder):
    dls = loaders(folder, Resize(64)).in_memory()
    assert probe(folder, size=64).total_bytes==probe(folder, recipe=first(dls.train.columns.values()).recipe).total_bytes
    assert probe(folder).total_bytes==sum(np.prod(Image.open(o).size)*3 for o in get_image_files(folder))

def test_probe_decodes_and_takes_nothing(folder, monkeypatch):
    from PIL import ImageFile
    def load(self): raise AssertionError("decoded")
    monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
    guard = MemoryGuard()
    plan = probe(folder, guard=guard, n_timed=0)
    assert plan.total_bytes>0 and not guard.arenas

def test_sampling_error_is_stated_and_true(tmp_path):
    files = [tmp_path/f'{i}.png' for i in range(300)]
    for i,o in enumerate(files): Image.new('L', (10+i*7%97, 10+i*13%89)).save(o)
    exact,sampled = probe(files, n=300, n_timed=0),probe(files, n=60, n_timed=0)
    assert exact.error_frac==0 and '±' not in str(exact) and '±' not in exact._repr_html_()
    assert 0 < sampled.error_frac < .2 and '±' in sampled._repr_html_() and '±' in str(sampled)
    assert abs(sampled.total_bytes-exact.total_bytes) < 3*sampled.error_frac*exact.total_bytes

@pytest.mark.parametrize('limit_bytes,fits', [(10**9,True), (500_000,False), (0,False)])
def test_verdict(limit_bytes, fits, folder):
    plan = probe(folder, size=64, guard=MemoryGuard(limit_bytes=limit_bytes))
    assert plan.fits==fits and plan.budget_bytes==limit_bytes and plan.store=='resized'
    assert plan.cached_frac==(1 if fits else limit_bytes/plan.total_bytes)
    for o in (str(plan), plan._repr_html_()): assert human_bytes(plan.total_bytes) in o and '60' in o and ('fit' in o)
    if not fits: assert 'limit_bytes' in plan.reason
    if fits: assert plan.reason=='All images fit.'

def test_bars_are_seen_where_memory_is_much_larger(folder):
    plan = probe(folder, size=64, guard=MemoryGuard(limit_bytes=10**12), n_timed=0)
    ax = plan.plot()
    largest = max(o.get_width() for o in ax.patches)
    assert largest>ax.get_xlim()[1]/2 and [o.get_text().strip() for o in ax.texts]==[human_bytes(o.total_bytes) for o in plan.stores.values()]

@pytest.mark.parametrize('size', [64,None])
def test_each_store_is_planned(size, folder):
    files = get_image_files(folder)
    plan = probe(folder, size=size, guard=MemoryGuard(limit_bytes=2_000_000))
    assert list(plan.stores)==(['resized'] if size else [])+['decoded','encoded'] and all(o.store==k for k,o in plan.stores.items())
    assert plan.stores['encoded'].total_bytes==sum(o.stat().st_size for o in files)
    assert plan.stores['decoded'].total_bytes==probe(folder).total_bytes and plan.stores[plan.store].total_bytes==plan.total_bytes
    for o in plan.stores.values(): assert o.cached_frac==(1 if o.fits else 2_000_000/o.total_bytes) and o.n_items==60
    assert len(plan.plot().patches)==len(plan.stores) and 'encoded' in plan._repr_html_()

def test_seconds_come_from_a_sample(folder, tmp_path):
    "None unless asked for; files that can't be read are left out; only what fits is filled"
    assert probe(folder, size=64, n_timed=0).fill_s is None
    plan = probe(folder, size=64, n_timed=8)
    assert plan.fill_s==60*plan.image_s>0 and 's with' in str(plan)
    half = plan._replace(budget_bytes=plan.total_bytes//2)
    assert half.fill_s==pytest.approx(plan.fill_s/2, rel=.01)
    (tmp_path/'text.jpg').write_text('This is no image.')
    assert probe([tmp_path/'text.jpg'], n_timed=4).fill_s is None  # nor for small files
    assert probe([*get_image_files(folder), tmp_path/'text.jpg'], n_timed=61).fill_s>0

def test_a_million_files_cost_a_sample(folder, monkeypatch):
    opened = []
    monkeypatch.setattr('fastmem.plan.image_header', lambda o: (opened.append(o), image_header(o))[1])
    files = get_image_files(folder).items*16_667
    plan = probe(files, size=64, n_timed=32)
    assert len(opened)==256 and plan.n_items==1_000_020 and plan.error_frac>0
    exact = probe(folder, size=64)
    assert abs(plan.total_bytes/16_667-exact.total_bytes) < 4*plan.error_frac*exact.total_bytes

def test_a_folder_is_listed_as_fastai_does(tmp_path):
    for o in ('a.jpg','b/c.PNG','b/.hidden.jpg','.cache/d.jpg','b/notes.txt','noext','b/e/f.tif','.jpg'):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True); (tmp_path/o).touch()
    from fastmem.plan import get_images, _listed
    assert set(map(Path, get_images(tmp_path, _listed)))==set(get_image_files(tmp_path))

# What a plan says of a learner

def learner(dls, model=None):
    model = ifnone(model, nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(3, dls.c), nn.BatchNorm1d(dls.c)))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat())

def make(folder, item_tfms, **kwargs):
    return ImageDataLoaders.from_folder(folder, **{**dict(valid_pct=.2, bs=8, item_tfms=item_tfms, num_workers=0, device='cpu'), **kwargs})

@pytest.mark.parametrize('kept', [False,True])
def test_learner_plan_changes_nothing(folder, kept):
    dls = make(folder, Resize(64))
    if kept: dls.in_memory(mode='preload')
    learn,n_arenas = learner(dls),len(shared_guard().arenas)
    before = [o.clone() for o in learn.model.state_dict().values()],random_states()
    plan = learn.memory_plan(n_timed=4)
    assert all(torch.equal(a, b) for a,b in zip(before[0], learn.model.state_dict().values())) and random_states()==before[1]
    assert all(p.grad is None for p in learn.model.parameters()) and len(shared_guard().arenas)==n_arenas
    assert plan.total_bytes==probe(folder, size=64).total_bytes and plan.n_items==60 and plan.store=='resized' and set(plan.stores)=={'resized','decoded','encoded'}
    assert plan.waits_frac>.1 and not plan.warnings and 'waits for its batches' in str(plan)
    if kept: assert (dls.memory.hits,dls.memory.misses)==(0,0) and plan.budget_bytes>=dls.memory.cached_bytes

def test_a_held_cache_counts_as_room(folder):
    dls = make(folder, Resize(64)).in_memory(guard=MemoryGuard(limit_bytes=1_500_000))
    assert learner(dls).memory_plan(n_timed=0).fits
    dls.preload()
    assert dls.train.cache.guard.budget()<500_000 and learner(dls).memory_plan(n_timed=0).fits

class Slow(nn.Module):
    def __init__(self): super().__init__(); self.inner = nn.Linear(3, 3)
    def forward(self, x): time.sleep(.5); return self.inner(x.mean((2,3)))

def test_a_slow_model_is_the_bottleneck(folder):
    plan = learner(make(folder, Resize(64), num_workers=1), Slow()).memory_plan(n_steps=1, n_timed=0)
    assert plan.waits_frac==0 and first(plan.warnings).startswith('Loading is not the bottleneck') and plan.warnings[0] in str(plan)

@pytest.mark.parametrize('load_s,step_s,workers,frac', [(1,1,0,.5), (1,9,0,.1), (2,1,1,.5), (1,2,1,0), (1,1,1,0)])
def test_what_training_waits_for(load_s, step_s, workers, frac):
    from fastmem.learner import waits_frac
    assert waits_frac(load_s, step_s, workers)==pytest.approx(frac)

def test_random_transforms_and_generated_images_are_warned_of(folder):
    def warnings(dls): return learner(dls).memory_plan(n_steps=1, n_timed=0).warnings
    assert any('RandomResizedCrop is random' in o for o in warnings(make(folder, RandomResizedCrop(64))))
    assert any('FlipItem is random' in o for o in warnings(make(folder, [FlipItem(), Resize(64)])))
    assert not any('random' in o for o in warnings(make(folder, Resize(64), batch_tfms=Flip())))
    images = [np.full((80,90,3), i, np.uint8) for i in range(20)]
    block = DataBlock((ImageBlock,CategoryBlock), get_items=lambda o: list(range(20)), get_x=lambda i: images[i], get_y=lambda i: i%2, item_tfms=Resize(64))
    dls = block.dataloaders(None, bs=4, num_workers=0, device='cpu')
    plan = learner(dls).memory_plan(n_steps=1, n_timed=0)
    assert plan.n_items==0 and any('generated' in o for o in plan.warnings)

def test_images_and_masks_are_planned_together(folder):
    block = DataBlock((ImageBlock,MaskBlock), get_items=get_image_files, get_y=lambda o: o, item_tfms=Resize(64))
    dls = block.dataloaders(folder, bs=4, num_workers=0, device='cpu')
    model = nn.Conv2d(3, 256, 1)
    plan = Learner(dls, model, loss_func=CrossEntropyLossFlat(axis=1)).memory_plan(n_steps=1, n_timed=4)
    assert plan.n_items==120 and plan.total_bytes==probe(folder, size=64).total_bytes*4//3 and plan.fill_s>0

def test_probe_goes_on_over_bad_files(folder, tmp_path):
    "A file that can't be read is counted like the others: the batch that reaches it says so"
    (tmp_path/'text.jpg').write_text('This is no image.')
    files = [*get_image_files(folder), tmp_path/'text.jpg', tmp_path/'missing.jpg']
    assert probe(files).n_items==62
    assert probe([tmp_path/'text.jpg']).total_bytes==probe([]).total_bytes==0

def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): probe(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='nowhere'): probe(str(tmp_path/'nowhere'))
    (tmp_path/'a_file.jpg').touch()
    with pytest.raises(FileNotFoundError, match='a_file.jpg'): probe(tmp_path/'a_file.jpg')
    (tmp_path/'empty'/'inner').mkdir(parents=True)
    (tmp_path/'empty'/'inner'/'notes.txt').write_text('none here')
    with pytest.raises(ValueError, match='empty'): probe(tmp_path/'empty')

def test_a_plan_shows_all_stores(folder):
    plan = probe(folder, size=64)
    assert repr(plan)==str(plan) and all(f'as {k} ' in str(plan) for k in ('decoded','encoded'))

def made(i:int): return PILImage.create(np.full((20,20,3), i, np.uint8))

def test_the_plan_of_generated_images_is_a_warning():
    dsets = Datasets(range(12), [[made],[lambda i: i%2, Categorize()]], splits=[range(8),range(8,12)])
    dls = dsets.dataloaders(bs=4, after_item=ToTensor(), after_batch=IntToFloatTensor(), num_workers=0, device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(1200, 2)), loss_func=CrossEntropyLossFlat())
    plan = learn.memory_plan()
    assert plan.n_items==0 and any('generated' in o for o in plan.warnings) and plan.reason.startswith('Nothing is kept')
    with pytest.raises(TypeError, match='no images'): dls.in_memory()

class OwnItems(Datasets):
    def __getitem__(self, i): return super().__getitem__(i)

def test_items_that_a_dataset_makes_itself_are_no_plan(folder):
    files = get_image_files(folder)
    dsets = OwnItems(files, [[PILImage.create],[parent_label,Categorize()]], splits=[range(40),range(40,60)])
    dls = DataLoaders(*[TfmdDL(o, bs=8, after_item=[Resize(64),ToTensor()], num_workers=0) for o in (dsets.train,dsets.valid)])
    with pytest.raises(TypeError, match='OwnItems makes its items'): plan_loaders(dls)
