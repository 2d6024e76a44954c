"What identifies pixels, and that an image that was kept is the one that was opened"

import functools, pickle, re
from pathlib import PurePosixPath

import pytest
from fastai.vision.all import *
from fastmem.recipe import *
from helpers import *

def digest(cls): return opener_of(cls).digest

# What identifies pixels: the code that opens an image, and what it uses

program = '''
import numpy as np
from fastai.vision.all import *
from fastmem.recipe import *
{blank}
window,colours,table,seen = dict(low=1, high={high}), {{'red','green','blue'}}, np.arange(9), []
def helper(im): return im.point(lambda v: v*{factor}) if 'red' in {{'a','red','b'}} else im
def factory(k):
    class Scan(PILImage):
        scale = 2
        @classmethod
        def create(cls, fn, *, gain={gain}, **kwargs):
            seen.append(fn)
            im = helper(cls(super().create(fn, **kwargs)))
            return im if window['low'] or colours or table[0] else im.getchannel(k)
    return Scan
cls = factory('{k}')
before = opener_of(cls)
seen.append(1)
assert opener_of(cls)==before and not before.session_only
print(before.digest)
'''
changes = dict(high=3, factor=2, gain=1, k='R')

@pytest.fixture(scope='module')
def printed(tmp_path_factory):
    def run(name, **kwargs):
        path = tmp_path_factory.mktemp(name)
        return run_forked(path, program.format(**{**changes, 'blank': '', **kwargs})).strip()
    return run

@pytest.fixture(scope='module')
def first_run(printed): return printed('first')

def test_digest_is_the_same_in_another_run(tmp_path, printed, first_run):
    "Another file, other line numbers; and another order of sets"
    assert printed('another', blank='# moved\n\n\n')==first_run
    assert run_program(tmp_path, program.format(**changes, blank='')).strip()==first_run

@pytest.mark.parametrize('change', [dict(high=4), dict(factor=3), dict(gain=2), dict(k='G')], ids=str)
def test_what_code_uses_is_in_the_digest(change, printed, first_run): assert printed('changed', **change)!=first_run

class Halved(PILImage):
    @classmethod
    def create(cls, fn, **kwargs): return cls(super().create(fn, **kwargs).point(lambda v: v//2))

def other_load(fn, mode=None): return load_image(fn, 'L').convert(mode)

def test_stock_classes_are_told_apart():
    assert len({digest(o) for o in (PILImage,PILImageBW,PILMask,Halved)})==4

@pytest.mark.parametrize('cls', [PILImage,PILMask,Halved], ids=lambda o: o.__name__)
@pytest.mark.parametrize('patch', ['load_image','create','_open_args'])
def test_patches_are_noticed(cls, patch, monkeypatch):
    before = digest(cls),Recipe(cls)
    if patch=='load_image': monkeypatch.setattr('fastai.vision.core.load_image', other_load)
    elif patch=='create': monkeypatch.setattr(cls, 'create', classmethod(lambda cls, fn: cls(other_load(fn, 'RGB'))))
    else: monkeypatch.setattr(cls, '_open_args', {'mode':'RGBA'})
    assert digest(cls)!=before[0] and Recipe(cls)!=before[1]
    if patch!='_open_args': assert not opens_as_stock(cls) and not gathers(cls)
    monkeypatch.undo()
    assert (digest(cls),Recipe(cls))==before

def test_wrapped_library_function_is_the_users(monkeypatch):
    @functools.wraps(load_image)
    def wrapped(fn, mode=None): return load_image(fn, 'L').convert(mode)
    monkeypatch.setattr('fastai.vision.core.load_image', wrapped)
    assert not opens_as_stock(PILImage)

def with_model(model):
    class Enhanced(PILImage):
        @classmethod
        def create(cls, fn, **kwargs): return model(super().create(fn, **kwargs))
    return Enhanced

@pytest.mark.parametrize('make', [lambda: nn.Linear(1000,1000), lambda: (i for i in range(3)), lambda: list(range(100_000))], ids=['model','generator','long'])
def test_what_can_not_be_compared_is_known_while_it_lives(make):
    a,b = make(),make()
    first,second = opener_of(with_model(a)),opener_of(with_model(b))
    assert '`model`' in first.session_only and first!=second and first==opener_of(with_model(a))
    digests = {opener_of(with_model(make())).digest for _ in range(20)}  # of objects that may get each other's ids
    assert len(digests)==20

@pytest.mark.parametrize('value', [np.arange(9), torch.arange(9.), Path('a'), dict(a=[1]), {'x','y'}, partial(int, base=2), re.compile('a'), nn.Identity(),
                                   functools.lru_cache(other_load), np.float32(2), torch.float16], ids=lambda o: type(o).__name__)
def test_plain_values_are_compared(value):
    opener = opener_of(with_model(value))
    assert not opener.session_only and opener==opener_of(with_model(deepcopy(value)))!=opener_of(with_model(None))

def test_values_that_hold_themselves():
    loop = []; loop.append(loop)
    def f(x): return g(x)
    def g(x): return f(x)
    assert opener_of(with_model(loop))==opener_of(with_model(loop)) and opener_of(with_model(f))==opener_of(with_model(f))!=opener_of(with_model(loop))

def test_functions_of_modules_are_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path/'mine_to_edit.py').write_text('def f(x): return x+1')
    import mine_to_edit
    class OfModule(PILImage):
        @classmethod
        def create(cls, fn): return mine_to_edit.f(fn)
    before = digest(OfModule)
    monkeypatch.setattr(mine_to_edit, 'f', lambda x: x+2)
    assert digest(OfModule)!=before

# Keys

def test_paths_are_exactly_paths():
    class Named(str): pass
    class Located(type(Path())): pass
    assert all(map(is_path, ['a', Path('a'), np.str_('a'), PurePosixPath('a')]))
    assert not any(map(is_path, [Named('a'), Located('a'), b'a', 3, io.BytesIO(), None]))

def test_each_domain_has_its_own_keys():
    a,b = Recipe(),Recipe(Halved)
    digests = [*key_digests(['1', b'1'], a), *key_digests(['1', b'1', 1, (1,), ('1',), (1,(2,))], a, are_keys=True), *key_digests(['1'], b),
               *key_digests(['1'], Recipe(method='crop', size=(8,8))), *key_digests(['1'], Recipe(store='encoded'))]
    assert len({tuple(o) for o in digests})==len(digests)

def test_a_path_is_one_key_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a,b,c = key_digests(['x.jpg', Path('x.jpg'), str(tmp_path/'x.jpg')], Recipe())
    assert a.tolist()==b.tolist()==c.tolist()
    odd = key_digests(['\udcff.jpg', '\ud800.jpg', 'é.jpg'], Recipe())
    assert len({tuple(o) for o in odd})==3

@pytest.mark.parametrize('key', [1.5, None, [1], ('a',2.)], ids=str)
def test_other_keys_are_refused(key):
    with pytest.raises(TypeError, match='give a str, bytes, int'): key_digests([key], Recipe(), are_keys=True)

def test_keys_of_one_recipe_are_the_same_again():
    "After pickling, as a worker that was spawned gets it"
    recipe = Recipe(Halved, 'crop', (8,8))
    again = pickle.loads(pickle.dumps(recipe))
    assert again==recipe and (key_digests(['a'], again)==key_digests(['a'], recipe)).all()

# What comes back is the image that was opened

def kept(im, recipe=Recipe()):
    "`im` after it was kept"
    bands,dtype = pixel_modes[im.mode]
    data = to_stored(im, recipe)
    assert data.flags.c_contiguous and data.dtype==dtype and data.size==bands*im.width*im.height
    return from_planes(as_planes(data.reshape(-1), bands, im.size, recipe), im.mode, type(im), image_extras(im))

def random_image(mode, size):
    bands,dtype = pixel_modes[mode]
    if mode=='P': return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1],3), dtype=np.uint8)).quantize(40)
    if mode=='PA': return random_image('P', size).convert('PA')
    a = np.random.default_rng(0).integers(0, 255, (*size[::-1],bands)).astype(dtype)
    if mode=='1': return Image.fromarray(a[...,0]>127)
    return Image.frombytes(mode, size, a.tobytes())

@pytest.mark.parametrize('size', [(30,20),(90,70)], ids=['planar','interleaved'])
@pytest.mark.parametrize('mode', mode_names)
def test_every_mode_comes_back(mode, size):
    im = PILBase(random_image(mode, size))
    again = kept(im)
    assert type(again) is PILBase and (again.mode,again.size)==(mode,size) and again.tobytes()==im.tobytes() and again==im
    assert again.getpalette()==im.getpalette()
    for o in (again, im): o.putpixel((1,1), o.getpixel((0,0)))  # its own to change
    assert again.tobytes()==im.tobytes()

def test_palette_with_alpha_comes_back():
    im = random_image('P', (20,20))
    im.putpalette(list(range(160)), 'RGBA')
    assert kept(PILBase(im)).convert('RGBA').tobytes()==im.convert('RGBA').tobytes()

@pytest.mark.parametrize('ext', ['jpg','png','tiff','gif','webp'])
def test_info_of_files_comes_back(ext, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(size=(80,60)).save(tmp_path/f'a.{ext}', exif=exif, dpi=(72,72), icc_profile=b'profile', comment=b'text', **dict(transparency=(1,2,3)) if ext=='png' else {})
    for cls in (PILImage, OfPillow):
        im = cls.create(tmp_path/f'a.{ext}')
        again = kept(im)
        assert again.info==im.info and again==im
        if cls is PILImage or ext!='tiff': assert dict(again.getexif())==dict(im.getexif())  # stock raises for the other
        for f in (Image.Image.copy, lambda o: o.crop((1,1,9,9)), lambda o: o.resize((8,8)), lambda o: o.rotate(9), lambda o: o.convert('L')):
            assert f(again).info==f(im).info and f(again).tobytes()==f(im).tobytes()

class OfPillow(PILBase):
    "Has the attributes of Pillow's reader of its file"
    @classmethod
    def create(cls, fn):
        im = Image.open(fn)
        im.load()
        return cls(im)

def test_attributes_come_back(tmp_path):
    im = PILImage(photo(size=(80,60)))
    im.gain,im.source,im.spacing,im.mask = 1.5,tmp_path/'a',np.arange(3),photo(1, (8,8))
    im.getexif()[0x0112] = 6  # in the object alone, not in `info`
    again = kept(im)
    assert (again.gain,again.source,again.mask,dict(again.getexif()))==(im.gain,im.source,im.mask,{0x0112:6}) and (again.spacing==im.spacing).all()
    assert not image_extras(PILImage(photo(size=(80,60))))

@pytest.mark.parametrize('value', [lambda x: x, (i for i in range(3))], ids=['lambda','generator'])
def test_what_can_not_be_copied_is_named(value):
    im = PILImage(photo(size=(80,60)))
    im.helper = value
    with pytest.raises(NotKept, match='`helper`'): image_extras(im)

def test_modes_that_are_not_kept():
    assert not keeps_mode(Recipe(), 'I;16B') and not any(keeps_mode(Recipe(method='squish', size=(8,8)), o) for o in ('P','PA','1'))
    assert keeps_mode(Recipe(method='squish', size=(8,8)), 'RGB')

# Plain JPEGs are decoded and resized without Pillow, to the same pixels; everything else goes by Pillow

def saved(path, size=(75,53), mode='RGB', **kwargs):
    photo(size=size).convert(mode).save(path, **kwargs)
    return path

def exif():
    res = Image.Exif()
    res[0x0112] = 6
    return res

plain_saves = [dict(quality=q, subsampling=s, progressive=p) for q in (5,75,100) for s in range(3) for p in (False,True)]
plain_saves += [dict(mode='L'), dict(restart_marker_blocks=2), dict(size=(1,1)), dict(size=(17,400)), dict(keep_rgb=True, subsampling=0), dict(icc_profile=b'x'*70_000),
                dict(exif=exif(), dpi=(72,72), comment=b'text', icc_profile=b'profile', xmp=b'<x/>')]

@pytest.mark.parametrize('kwargs', plain_saves, ids=lambda o: ','.join(f'{k}={v}' for k,v in o.items())[:40])
def test_plain_jpegs_have_stocks_pixels(kwargs, tmp_path):
    file = saved(tmp_path/'a.jpg', **kwargs)
    cls = PILImageBW if kwargs.get('mode')=='L' else PILImage
    stock,made = cls.create(file),make_pixels(file, Recipe(cls))
    assert (type(made.im) is PlainJpeg)==(len(kwargs.get('icc_profile', ''))<1<<16)  # a longer header is left to Pillow
    assert (made.planes==to_planes(stock)).all() and (made.im.mode,made.im.size,made.full)==(stock.mode,stock.size,stock.size)
    assert made.im.info==stock.info and image_extras(made.im)==image_extras(stock)

@pytest.mark.parametrize('name,kwargs', [('cmyk',dict(mode='CMYK')), ('grey opened as RGB',dict(mode='L')), ('png',dict(format='PNG')), ('mpo',dict(format='MPO', save_all=True, append_images=[photo(1)]))])
def test_other_files_are_left_to_pillow(name, kwargs, tmp_path):
    file = saved(tmp_path/'a.jpg', **kwargs)
    made = make_pixels(file, Recipe())
    assert type(made.im) is PILImage and (made.planes==to_planes(PILImage.create(file))).all()

def test_decoders_that_differ_are_noticed(tmp_path, monkeypatch):
    import fastmem.recipe as module
    file,decoded = saved(tmp_path/'a.jpg'),module._decoded
    assert decodes_alike()
    monkeypatch.setattr(module, '_decoded', lambda data: decoded(data)^1)
    decodes_alike.cache_clear()
    try: assert not decodes_alike() and type(make_pixels(file, Recipe()).im) is PILImage
    finally: decodes_alike.cache_clear()

def outcome(f):
    try: return f().tobytes()
    except Exception as e: return type(e),str(e)

def test_damaged_jpegs_are_what_they_are_in_stock(tmp_path):
    "Cut short, with bytes changed, and with more behind the end: the same pixels, or the same error"
    rng,file = np.random.default_rng(0),tmp_path/'a.jpg'
    whole = [saved(tmp_path/'a.jpg', (40,24), subsampling=i%3, progressive=i>2, exif=exif()).read_bytes() for i in range(6)]
    for i in range(300):
        data = bytearray(whole[i%6])
        if i%4==0: del data[rng.integers(2, len(data)):]
        elif i%4==1: data += rng.bytes(9)
        else:
            for at in rng.integers(0, len(data) if i%4==2 else 400, 3): data[at] = rng.integers(256)
        file.write_bytes(data)
        assert outcome(lambda: make_pixels(file, Recipe()).planes)==outcome(lambda: to_planes(PILImage.create(file))), i

@pytest.mark.parametrize('method', ['crop','squish','pad'])
def test_resized_jpegs_are_stocks_to_a_rounding(method, tmp_path):
    resize = Resize((96,128), method=method)
    decibels = []
    for i,size in enumerate([(300,225), (225,300), (129,98), (90,61), (400,120)]):
        file = saved(tmp_path/f'{i}.jpg', size, quality=90)
        recipe = resize_recipe(PILImage, resize)
        made = make_pixels(file, recipe)
        assert type(made.im) is PlainJpeg
        stock = to_planes(resize(PILImage.create(file), split_idx=1))
        decibels.append(psnr(cut(made.planes, made.full, recipe, (.5,.5)), stock))
    assert np.mean(decibels)>=60 and min(decibels)>=50
