"A hit gives what a fresh read gives, for as long as it would: change this, then that must come"
import functools, gc, threading

import pytest
from fastai.vision.all import *
from fastmem.all import *
from helpers import *
from pipelines import *

@pytest.fixture(scope='module', autouse=True)
def quickly():
    "What is imported by now is no garbage, and such small batches need one thread"
    n_threads = torch.get_num_threads()
    gc.collect(); gc.freeze(); torch.set_num_threads(1)
    yield
    gc.unfreeze(); torch.set_num_threads(n_threads)

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('promises')/'data')

stores = dict(resized=dict(store='resized'), decoded=dict(store='decoded'), encoded=dict(store='encoded'), path=dict(store='decoded', path='cache'))

# --- what is changed between epochs, and in the middle of one ---

def spec_for(name):
    f = changes[name]
    return Spec(items=f.items or 'paths', target=f.targets[0] if f.targets else 'category')

@functools.lru_cache(maxsize=None)
def of_stock(folder, spec, name, when):
    "Stock's batches after the change `name`"
    return run(make_seeded(spec, folder), folder, name, when)

def make_seeded(spec, folder):
    seeded(1)
    return make(spec, folder)

def run(dls, folder, name, when):
    "Batches of three epochs, of which the change comes before the first, before the second or within the second"
    def apply():
        if name is not None: changes[name](dls, folder)
    with opening_kept():
        if when=='cold': apply()
        res = [epoch(dls, 0)]
        if when=='warm': apply()
        res.append(epoch(dls, 1, mid=apply if when=='within' else None))
        return [*res, epoch(dls, 2)]

def check_change(folder, tmp_path, store, name, when, workers=0):
    spec = spec_for(name)._replace(workers=workers)
    want = of_stock(folder, spec, name, when)
    dls = make_seeded(spec, folder)
    options = stores[store]
    if 'path' in options: options = {**options, 'path': tmp_path/'cache'}
    got = run(dls.in_memory(**options), folder, name, when)
    if store in ('resized','encoded') and refused(got): return
    found = difference(want, got, exact=store!='resized')
    if found: pytest.fail(f'epoch, loader, batch, element: {found}')

def refused(epochs):
    "Whether it was said that what is asked for can't be kept so, and how it can"
    errors = [o for e in epochs for dl in e for o in dl if isinstance(o, Exception)]
    return bool(errors) and all(isinstance(o, ValueError) and ("store='decoded'" in str(o) or "needs a `Resize`" in str(o)) for o in errors)

names = [o for o in changes if o!=f'item_tfms_{Spec().tfms}']
once_an_epoch = {o for o in names if changes[o].items=='table'} # a table is looked at once an epoch
of_the_next_epoch = {'do_item_set','another_bs','drop_last_turned'} # stock asks for these where an epoch begins

@pytest.mark.parametrize('name', names)
def test_the_table_can_fail(folder, name):
    "Each change is seen in stock's batches; but for `create`, which transforms hold"
    spec = spec_for(name)
    assert bool(difference(of_stock(folder, spec, name, 'warm'), of_stock(folder, spec, None, 'warm'))) == (name!='create_patched')

@pytest.mark.parametrize('store', stores)
@pytest.mark.parametrize('name', names)
def test_what_is_changed_between_epochs_comes(folder, tmp_path, store, name): check_change(folder, tmp_path, store, name, 'warm')

@pytest.mark.parametrize('name', names)
def test_what_is_changed_before_anything_is_kept_comes(folder, tmp_path, name): check_change(folder, tmp_path, 'resized', name, 'cold')

@pytest.mark.parametrize('name', [o for o in names if o not in once_an_epoch|of_the_next_epoch])
def test_what_is_changed_within_an_epoch_comes_in_the_next_batch(folder, tmp_path, name): check_change(folder, tmp_path, 'decoded', name, 'within')

with_workers = ['dataset_by_another','items_turned_in_place','a_column_of_labels','folder_of_a_users_getter','vocabulary_in_place','item_tfms_late','load_image_patched']
@pytest.mark.parametrize('name', with_workers)
def test_what_is_changed_comes_with_workers(folder, tmp_path, name): check_change(folder, tmp_path, 'decoded', name, 'warm', workers=2)

def test_a_labeller_of_fastais_is_known_again(folder):
    "Its labels are remembered by item: it is asked once, not in each epoch"
    asked = []
    dls = make_seeded(Spec(), folder).in_memory()
    labeller = wrapped(dls.train.dataset.tls[1].tfms.fs[0])
    matcher = labeller.matcher
    def counted(o): asked.append(o); return matcher(o)
    labeller.matcher = counted
    list(dls.train)
    n = len(asked)
    for _ in range(3): list(dls.train)
    assert n and len(asked)<=n_train+4*4, 'some items are made each epoch to see whether they draw random numbers'

# --- kind 1: what comes back is the image that was opened ---

def exif_of(o):
    exif = Image.Exif()
    exif[0x0112] = o
    return exif

def with_text():
    from PIL.PngImagePlugin import PngInfo
    res = PngInfo()
    res.add_text('note', 'a text')
    return res

rich = {
    'exif.jpg': lambda im, f: im.save(f, exif=exif_of(6)),
    'dpi.jpg': lambda im, f: im.save(f, dpi=(300,300)),
    'icc.png': lambda im, f: im.save(f, icc_profile=b'a profile'),
    'text.png': lambda im, f: im.save(f, pnginfo=with_text()),
    'transparency.png': lambda im, f: im.save(f, transparency=(1,2,3)),
    'palette.png': lambda im, f: im.quantize(16).save(f),
    'palette_transparency.png': lambda im, f: im.quantize(16).save(f, transparency=3),
    'grey.png': lambda im, f: im.convert('L').save(f),
    'bits.png': lambda im, f: im.convert('1').save(f),
    'alpha.png': lambda im, f: im.convert('RGBA').save(f),
    'deep.png': lambda im, f: Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20,24)*100).save(f),
    'animated.gif': lambda im, f: im.save(f, save_all=True, append_images=[im.rotate(90)], duration=90, loop=3),
    'cmyk.jpg': lambda im, f: im.convert('CMYK').save(f),
}
class AsIs(PILImage): _open_args = {'mode': None}

class Noted(PILImage):
    "Its `create` sets attributes"
    _open_args = {'mode': None}
    @classmethod
    def create(cls, fn, **kwargs):
        res = super().create(fn, **kwargs)
        res.spacing,res.file = (.5,2.),Path(fn).name
        return res

class Holds(PILImage):
    "Its `create` sets an attribute that can't be copied"
    @classmethod
    def create(cls, fn, **kwargs):
        res = super().create(fn, **kwargs)
        res.lock = threading.Lock()
        return res

class Look(Transform):
    "Notes what an item transform of the user's sees"
    order = 0
    def __init__(self, seen): self.seen = seen
    def encodes(self, o:PILImage):
        own = {k:v for k,v in vars(o).items() if k in ('spacing','file')}
        palette = None if o.palette is None else o.getpalette()
        self.seen.append((type(o), o.size, o.mode, o.tobytes(), palette, o.info, dict(o.getexif()), own))
        return o

def looked(files, cls, after=None, n_epochs=2, **options):
    "What `Look` sees in each epoch, and the loaders"
    seen = []
    dsets = Datasets(files, [[cls.create, *L(after and after(seen))], [lambda o: 0]], splits=[range(len(files)),[]])
    tfms = [] if after else [Look(seen)]
    dls = dsets.dataloaders(bs=1, after_item=[*tfms, lambda o: tuple(0 for _ in o) if isinstance(o, tuple) else 0], num_workers=0, shuffle=False, device='cpu')
    if options: dls.in_memory(**options)
    seen.clear()
    res = []
    for _ in range(n_epochs):
        list(dls.train.new(drop_last=False) if not options else dls.train)
        res.append(list(seen)); seen.clear()
    return res,dls

@pytest.fixture(scope='module')
def rich_files(tmp_path_factory):
    path = tmp_path_factory.mktemp('rich')
    for name,save in rich.items(): save(picture(7), path/name)
    return sorted(path.iterdir())

@pytest.mark.parametrize('cls', [AsIs,PILImage,Noted], ids=['as it is','RGB','attributes'])
@pytest.mark.parametrize('path', [False,True], ids=['memory','path'])
@pytest.mark.parametrize('by', ['item transform','type transform'])
def test_all_of_an_image_comes_back(rich_files, tmp_path, cls, path, by):
    after = Look if by=='type transform' else None
    options = dict(store='decoded', path=tmp_path/'cache' if path else None)
    want = looked(rich_files, cls, after)[0]
    got,dls = looked(rich_files, cls, after, n_epochs=3, **options)
    for e in got:
        for file,a,b in zip(rich_files, want[0], e, strict=True):
            for what,x,y in zip(('class','size','mode','pixels','palette','info','exif','attributes'), a, b): assert x==y, f'{what} of {file.name}'
    assert dls.memory.n_cached>=len(rich_files)-1 # an unusual mode may be read anew

@pytest.mark.parametrize('path', [False,True], ids=['memory','path'])
def test_what_cant_be_copied_is_not_kept_and_that_is_said(folder, tmp_path, capsys, path):
    files = sorted((folder/'images').iterdir())[:4]
    got,dls = looked(files, Holds, store='decoded', path=tmp_path/'cache' if path else None)
    said = capsys.readouterr().out
    assert [len(o) for o in got]==[4,4] and dls.memory.n_cached==0
    assert said.count('attribute `lock`')==1 and 'opened anew each time' in said
    assert 'lock' in dls.memory.not_kept

class Odd(PILImage):
    "In a mode that is not kept"
    @classmethod
    def create(cls, fn, **kwargs): return cls(Image.open(fn).convert('I').convert('I;16B'))

def test_an_odd_mode_is_not_kept_and_that_is_said(folder, capsys):
    files = sorted((folder/'images').iterdir())[:4]
    _,dls = looked(files, Odd, store='decoded')
    assert dls.memory.n_cached==0
    assert 'I;16B' in dls.memory.not_kept and capsys.readouterr().out.count('I;16B')==1
