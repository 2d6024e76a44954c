"A hit gives what a fresh read gives, for as long as it would: change this, then that must come"
import functools, gc, os, threading
from collections import Counter

import pytest
import pandas as pd
from fastai.vision.all import *
from fastmem.all import *
from fastmem.guard import shared_guard
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
        res = [epoch(dls, 0, only=0)]
        if when=='warm': apply()
        res.append(epoch(dls, 1, only=0, mid=apply if when=='within' else None))
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
once_an_epoch = {o for o in names if changes[o].items=='table'} | {'vocabulary_in_place'} # what is changed in place in a table or vocabulary is looked for once an epoch
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

@pytest.mark.parametrize('store', stores)
def test_files_that_change_on_disk(tmp_path, store):
    "Read again after `refresh`, and by new loaders; also where the pixel file is read in between, which has the old pixels"
    folder = write_folder(tmp_path/'data')
    options = stores[store]
    if 'path' in options: options = {**options, 'path': tmp_path/'cache'}
    dls = make_seeded(Spec(), folder).in_memory(**options)
    epoch(dls, 0)
    for name,again in (('01_b.png',False), ('02_c.png',False), ('03_a.png',True)):
        file = folder/'images'/name
        at_ns = file.stat().st_mtime_ns+10**9
        picture(20).save(file)
        os.utime(file, ns=(at_ns,at_ns))
        assert dls.memory.check()==[str(file)]
        if again: dls = make_seeded(Spec(), folder).in_memory(**options)
        else: assert dls.refresh()==[str(file)]
        dls.train.cache.sync()
        for k in range(2): assert not difference(epoch(make_seeded(Spec(shuffle=False), folder), k), epoch(shown(dls), k), store!='resized')

def shown(dls):
    "The same loaders, in order"
    return DataLoaders(dls.train.new(shuffle=False), dls.valid)

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

# --- kind 2: what identifies pixels ---

def image_dls(items, cls, second=None, get=None, **kwargs):
    "Loaders of whole images of `items`, opened by `cls`, in order"
    first_tfms = [*L(get), cls.create]
    dsets = Datasets(items, [first_tfms, second or [lambda o: 0]], splits=[range(len(items)),[]])
    return dsets.dataloaders(bs=4, after_item=[ToTensor()], num_workers=0, shuffle=False, drop_last=False, device='cpu', **kwargs)

def same_as_stock(make, n_epochs=2, **options):
    "Check that each epoch of `make()` is stock's, and return what is in memory"
    def of(dls):
        dls.loaders[0] = dls.train.new(shuffle=False, drop_last=False)
        return dls
    want,dls = list(of(make()).train),of(make().in_memory(**options))
    for _ in range(n_epochs): assert not difference(want, list(dls.train))
    return dls.memory

class Frame(str):
    "A name that has a number beside it"
    def __new__(cls, name, n):
        res = super().__new__(cls, name)
        res.n = n
        return res

class FramePath:
    "The same as a path-like"
    def __init__(self, name, n): self.name,self.n = name,n
    def __fspath__(self): return str(self.name)

class Frames(PILImage):
    "Turned by as many quarters as the item says"
    @classmethod
    def create(cls, fn, **kwargs): return cls(Image.open(os.fspath(fn)).convert('RGB').resize((20,20)).rotate(90*fn.n))

@pytest.mark.parametrize('path', [False,True], ids=['memory','path'])
@pytest.mark.parametrize('kind', [Frame,FramePath])
def test_a_name_with_more_to_it_names_no_image(folder, tmp_path, kind, path):
    file = sorted((folder/'images').iterdir())[0]
    same_as_stock(lambda: image_dls([kind(file, n) for n in range(4)], Frames), store='decoded', path=tmp_path/'cache' if path else None)

class Numbered(PILImage):
    "A frame of 'file:number'"
    @classmethod
    def create(cls, fn, **kwargs):
        file,_,n = str(fn).rpartition(':')
        return cls(Image.open(file).convert('RGB').resize((20,20)).rotate(90*int(n)))

def number_key(o): return str(o)

@pytest.mark.parametrize('path', [False,True], ids=['memory','path'])
@pytest.mark.parametrize('key', [None,number_key])
def test_frames_by_number(folder, tmp_path, capsys, path, key):
    "Kept in memory; with `path=` they are kept with a `key`, or it is said that they are not"
    file = sorted((folder/'images').iterdir())[0]
    options = dict(store='decoded', key=key, path=tmp_path/'cache' if path else None)
    memory = same_as_stock(lambda: image_dls([f'{file}:{n}' for n in range(4)], Numbered), **options)
    is_kept = key is not None or not path
    assert memory.n_cached==(4 if is_kept else 0) and bool(memory.not_kept)!=is_kept
    assert ('key=' in capsys.readouterr().out)!=is_kept

@pytest.mark.parametrize('path', [False,True], ids=['memory','path'])
def test_bytes_in_a_table_are_kept_by_what_they_are(folder, tmp_path, path):
    files = sorted((folder/'images').iterdir())
    df = pd.DataFrame(dict(image=[o.read_bytes() for o in files], name='the same'))
    options = dict(store='decoded', path=tmp_path/'cache' if path else None)
    memory = same_as_stock(lambda: image_dls(df, PILImage, get=ColReader('image')), **options)
    assert memory.n_cached==len(files) and not memory.not_kept
    df.loc[2, 'image'] = files[5].read_bytes()
    same_as_stock(lambda: image_dls(df, PILImage, get=ColReader('image')), **options)

@pytest.mark.parametrize('path', [False,True], ids=['memory','path'])
def test_the_same_key_in_two_elements_is_two_images(folder, tmp_path, path):
    "Also where both are kept in the same way; each is opened by a function of the user's"
    files = sorted((folder/'images').iterdir())
    arrays,others = ({o.name: np.asarray(Image.open(o.parents[1]/name/o.name)) for o in files} for name in ('images','others'))
    def make(): return image_dls(files, PILImage, get=lambda o: arrays[o.name], second=[lambda o: others[o.name], PILImage.create])
    memory = same_as_stock(make, store='decoded', key=lambda o: o.name, path=tmp_path/'cache' if path else None)
    assert memory.n_cached==2*len(files)

def opened_by(channel):
    class OneChannel(PILImage):
        @classmethod
        def create(cls, fn, **kwargs): return cls(Image.merge('RGB', [Image.open(fn).convert('RGB').getchannel(channel)]*3))
    return OneChannel

@pytest.mark.parametrize('path', [False,True], ids=['memory','path'])
def test_two_classes_of_one_name_never_meet(folder, tmp_path, path):
    "Also in one that is defined again while the other lives, and after a restart"
    files = sorted((folder/'images').iterdir())
    options = dict(store='decoded', path=tmp_path/'cache' if path else None)
    kept = [same_as_stock(lambda: image_dls(files, opened_by(o)), **options) for o in 'RGR']
    assert [o.n_cached for o in kept]==[len(files)]*3
    shared_guard().caches.clear()
    assert same_as_stock(lambda: image_dls(files, opened_by('B')), cache=ImageCache(path=options['path'])).n_cached==len(files)

def test_a_path_that_is_kept_is_warm_after_a_restart(folder, tmp_path):
    "What says that the classes above are told apart, not that nothing is found again"
    files = sorted((folder/'images').iterdir())
    same_as_stock(lambda: image_dls(files, opened_by('R')), store='decoded', path=tmp_path/'cache')
    gc.collect(); shared_guard().caches.clear()
    again = image_dls(files, opened_by('R')).in_memory(store='decoded', cache=ImageCache(path=tmp_path/'cache'))
    assert again.memory.n_cached==len(files)

# --- kinds 4 and 9: what is not kept is said, with the way out ---

ways = 'key=','cached(PILImage.create)','n_inp=2','CachedDataset'

def test_images_without_a_name_are_said_once(folder, capsys):
    files = sorted((folder/'images').iterdir())
    dls = image_dls(files, PILImage, get=lambda o: o.read_bytes()).in_memory(store='decoded')
    for _ in range(2): list(dls.train)
    said = capsys.readouterr().out
    assert said.count('opened anew')==1 and all(o in said for o in ways)
    assert 'named by no path' in dls.memory.not_kept and 'not kept' in repr(dls.memory)

def test_an_element_that_makes_its_images_itself_is_said(folder, capsys):
    files = sorted((folder/'images').iterdir())
    dls = image_dls(files, PILImage, second=[partial(PILImage.create)]).in_memory(store='decoded')
    for _ in range(2): list(dls.train)
    assert capsys.readouterr().out.count('element 1 makes its images itself')==1 and 'element 1' in dls.memory.not_kept

class Pair(Transform):
    "As in fastai's tutorial of Siamese pairs"
    def __init__(self, files, create): store_attr()
    def encodes(self, o:Path): return self.create(o),self.create(self.files[(int(o.name[:2])+1)%n_files]),TensorCategory(1)

def pairs(files, create):
    tls = TfmdLists(files, Pair(files, create), splits=[range(n_train), range(n_train, n_files)])
    return tls.dataloaders(after_item=[Resize(16), ToTensor()], after_batch=[IntToFloatTensor()], bs=4, num_workers=0, device='cpu')

def test_pairs_by_a_transform_are_refused_with_ways_that_work(folder):
    files = sorted((folder/'images').iterdir())
    with pytest.raises(TypeError) as e: pairs(files, PILImage.create).in_memory()
    assert all(o in str(e.value) for o in ways)
    asked = []
    def create(o): asked.append(o); return PILImage.create(o)
    seeded(0); want = pairs(files, PILImage.create)
    seeded(0); got = pairs(files, cached(create))
    for k in range(3):
        asked.clear()
        assert not difference(epoch(want, k), epoch(got, k))
    assert not asked, 'all are kept, in the first epochs'

class ImageTuple(fastuple):
    "As in the second form of the tutorial"
    @classmethod
    def create(cls, files): return cls(tuple(PILImage.create(o) for o in files))

class Couple:
    def __init__(self, files): self.files = files
    def __call__(self, o): return [o, self.files[(int(o.name[:2])+1)%n_files]]

@pytest.mark.parametrize('path', [False,True], ids=['memory','path'])
def test_a_type_of_several_images_is_kept(folder, tmp_path, path):
    files = sorted((folder/'images').iterdir())
    def make(): return image_dls(files, ImageTuple, get=Couple(files))
    memory = same_as_stock(make, store='decoded', path=tmp_path/'cache' if path else None)
    assert memory.n_cached==n_files

def test_two_blocks_are_kept(folder):
    files = sorted((folder/'images').iterdir())
    def make():
        block = DataBlock((ImageBlock,ImageBlock,CategoryBlock), n_inp=2, get_x=None, getters=[noop, lambda o: folder/'others'/o.name, lambda o: o.name[3]],
                          splitter=IndexSplitter(range(n_train, n_files)), item_tfms=Resize(16, 'squish'))
        return block.dataloaders(files, bs=4, num_workers=0, device='cpu')
    seeded(0); want = make()
    seeded(0); got = make().in_memory(store='decoded')
    for k in range(2): assert not difference(epoch(want, k), epoch(got, k))
    assert got.memory.n_cached==2*n_files

# --- kind 5: errors lead out ---

@pytest.mark.parametrize('options, said', [(dict(guard=2e9), 'limit_bytes'), (dict(guard='4GB'), 'limit_bytes'), (dict(size='x'), 'whole number'), (dict(size=0), 'whole number'),
    (dict(cache=object()), 'ImageCache'), (dict(mode='lazzy'), 'lazy'), (dict(key='name'), 'function')])
def test_a_wrong_option_says_what_it_is(folder, options, said):
    dls = make_seeded(Spec(), folder)
    with pytest.raises((TypeError,ValueError), match=said) as e: dls.in_memory(**options)
    assert len(str(e.value))<200 and '\n' not in str(e.value)
    assert type(dls.train) is TfmdDL, 'and nothing has changed'

bad_names = r'''
import io
import pandas as pd
from fastai.vision.all import *
from fastmem.all import *
folder = Path(sys.argv[1])
for i in range(4): Image.new('RGB', (24,20), (20*i,99,180)).save(folder/os.fsdecode(b'Mu\xf1oz_%d.png'%i))
(folder/os.fsdecode(b'caf\xe9.png')).write_bytes(b'')
out = io.StringIO()
sys.stdout = strict = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', errors='strict', write_through=True)
dls = ImageDataLoaders.from_lists(folder, get_image_files(folder), ['a']*5, valid_pct=.5, seed=1, item_tfms=Resize(16), bs=2, num_workers=0, device='cpu')
dls.in_memory(mode='preload')
text = strict.buffer.getvalue().decode()
sys.stdout = sys.__stdout__
assert "can't be read" in text and 'caf' in text, text
assert dls.memory.n_cached==4
'''
def test_names_that_are_not_utf8(tmp_path):
    (tmp_path/'images').mkdir()
    run_forked(tmp_path, bad_names, tmp_path/'images')

limits = '''
import resource
import pandas as pd
from fastai.vision.all import *
sys.path.insert(0, sys.argv[4])
from pipelines import *
what,value,store = sys.argv[1:4]
folder = write_folder(Path('data').absolute())
seeded(0); want = make(Spec(), folder)
seeded(0); dls = make(Spec(), folder)
n_fds = len(os.listdir('/proc/self/fd'))
limit = {'RLIMIT_NOFILE': n_fds+int(value), 'RLIMIT_AS': int(value)+int(Path('/proc/self/statm').read_text().split()[0])*4096}.get(what, int(value))
resource.setrlimit(getattr(resource, what), (limit, limit))
try: dls.in_memory(store='decoded', **({'path': 'cache'} if store=='path' else {}))
except MemoryError as e:
    assert 'raise `ulimit -' in str(e) and len(str(e))<200, e
    sys.exit(print('refused'))
for k in range(3):
    found = difference(epoch(want, k), epoch(dls, k))
    assert not found, found
print('kept', dls.memory.n_cached)
'''
@pytest.mark.parametrize('what, value', [('RLIMIT_FSIZE', 10**5), ('RLIMIT_AS', 2*10**8), ('RLIMIT_NOFILE', 20)])
@pytest.mark.parametrize('store', ['memory','path'])
def test_limits_of_the_system(tmp_path, what, value, store):
    "Training goes on as in stock, whatever is kept; or it is said which limit to raise"
    (tmp_path/'here').mkdir()
    said = run_forked(tmp_path, limits, what, value, store, Path(__file__).parent, folder=tmp_path/'here')
    assert 'kept' in said or 'refused' in said

# --- kind 6: nothing is asked more often than in stock ---

class CountedGetter:
    def __init__(self, f): self.f,self.asked = f,Counter()
    def __call__(self, o):
        self.asked[o['name'] if hasattr(o, 'keys') else o.name] += 1
        return self.f(o)

def run_lengths(o): return [int(Path(o).name[:2])+1, 480-int(Path(o).name[:2])-1]
def mask_of(o):
    n,_ = run_lengths(o)
    return PILMask(Image.fromarray(np.repeat(np.uint8([0,1]), run_lengths(o)).reshape(20,24)))

@pytest.mark.parametrize('what', ['vectors','masks of run lengths'])
def test_targets_are_made_once_an_item_and_epoch(folder, what):
    "But for the few that are made to see whether they draw random numbers"
    files = sorted((folder/'images').iterdir())
    df = pd.DataFrame(dict(name=[o.name for o in files], vector=[np.arange(50.)+i for i in range(n_files)]))
    f = (lambda o: tensor(o['vector'])) if what=='vectors' else (lambda o: mask_of(o['name']))
    def make(getter):
        dsets = Datasets(df, [[ColReader('name', pref=f'{folder}/images/'), PILImage.create], [getter]], splits=[range(n_train), range(n_train, n_files)])
        return dsets.dataloaders(bs=4, after_item=[Resize(16, 'squish'), ToTensor()], num_workers=0, device='cpu')
    getter = CountedGetter(f)
    seeded(0); want = make(f)
    seeded(0); dls = make(getter).in_memory(store='decoded')
    for k in range(3):
        getter.asked.clear()
        assert not difference(epoch(want, k), epoch(dls, k))
        n = getter.asked.values()
        assert max(n)<=2 and sum(n)<=n_files+2*4, 'each loader looks at four'

# --- what users do between epochs ---

class Drawing(PILImage):
    "Opens another view each time"
    @classmethod
    def create(cls, fn, **kwargs): return cls(PILImage.create(fn).rotate(90*random.randrange(4)))

class Counting(PILImage):
    "The same without random numbers"
    n = 0
    @classmethod
    def create(cls, fn, **kwargs):
        cls.n += 1
        return cls(PILImage.create(fn).point(lambda v: v//(1+cls.n%2)))

@pytest.mark.parametrize('cls', [Drawing,Counting])
def test_a_class_that_opens_another_image_each_time_is_not_kept(folder, cls, capsys):
    block = DataBlock((ImageBlock(cls),CategoryBlock), get_items=get_image_files, get_y=lambda o: 'a', splitter=IndexSplitter([0]), item_tfms=Resize(16))
    dls = block.dataloaders(folder/'images', bs=4, num_workers=0, device='cpu').in_memory()
    for _ in range(2): list(dls.train)
    assert dls.memory.n_cached==0 and f'opened by {cls.__name__}' in dls.memory.not_kept
    assert capsys.readouterr().out.count('fastmem:')==1

def test_a_number_of_workers_that_is_set_later_loses_no_items(folder):
    for n in (0,2,4):
        dls = make(Spec(workers=2, drop_last=False), folder).in_memory()
        epoch(dls, 0)
        dls.train.num_workers = n
        assert sum(len(b[0]) for b in dls.train)==n_train and dls.train.num_workers==n

@pytest.mark.parametrize('when', range(6))
def test_a_getter_that_names_another_image_now_and_then(folder, when):
    "It is noticed in the middle of an epoch, which goes on item by item"
    asked = []
    def get_x(o):
        asked.append(o)
        return folder/('others' if len(asked)==dls_asked+3+when else 'images')/o.name
    dls_asked = 10**9
    block = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_x=get_x, get_y=lambda o: 'a', splitter=IndexSplitter([0]), item_tfms=Resize(16))
    dls = block.dataloaders(folder/'images', bs=3, num_workers=0, device='cpu').in_memory()
    list(dls.train)
    dls_asked = len(asked)
    for _ in range(3): assert sum(len(b[0]) for b in dls.train)==9

def test_lists_of_labels_in_the_cells_of_a_table(folder):
    "Changed in place, which no identity tells"
    files = sorted((folder/'images').iterdir())
    table = pd.DataFrame(dict(file=[str(o) for o in files], labels=[['a'],['b']]*(n_files//2)))
    block = DataBlock((ImageBlock,MultiCategoryBlock), get_x=ColReader('file'), get_y=ColReader('labels'), splitter=IndexSplitter(range(6)), item_tfms=Resize(16))
    dls = block.dataloaders(table, bs=6, num_workers=0, device='cpu').in_memory()
    for _ in range(2): dls.valid.one_batch()
    for o in table.labels: o[:] = ['a','b']
    assert (dls.valid.one_batch()[1]==1).all()
