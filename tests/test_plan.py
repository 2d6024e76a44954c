"The grid against the crops of stock's `Resize`, tried over many sizes; and what a plan promises against what is then taken"

import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem.cache import *
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
    plan = probe(folder, guard=guard)
    assert plan.total_bytes>0 and not guard.arenas

def test_sampling_error_is_stated_and_true(tmp_path):
    files = [tmp_path/f'{i}.png' for i in range(300)]
    for i,o in enumerate(files): Image.new('L', (10+i*7%97, 10+i*13%89)).save(o)
    exact,sampled = probe(files, n=300),probe(files, n=60)
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
    assert plan.plot().get_xlabel()=='GB'

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
