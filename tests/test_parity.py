"Side by side with stock fastai, from the same seed: the same batches"
import gc, io, random, struct, zlib
from typing import NamedTuple

import pytest
from PIL import ImageFile
from fastai.vision.all import *
from fastmem.all import *
from fastmem.recipe import *
from fastmem.plan import *
from helpers import *

n_train,n_valid,bs = 8,5,3  # neither divides by bs: what `drop_last` drops, and a short last batch
N = n_train+n_valid

@pytest.fixture(scope='module', autouse=True)
def quickly():
    "What is imported by now is no garbage, and such small batches need one thread: these two would take most of the time"
    n_threads = torch.get_num_threads()
    gc.collect(); gc.freeze(); torch.set_num_threads(1)
    yield
    gc.unfreeze(); torch.set_num_threads(n_threads)

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Photos of many sizes, and beside each its mask, lossless (codes 0 to 3) and as a JPEG (black and white)"
    path = tmp_path_factory.mktemp('photos')
    res = photo_folder(path/'photos', N, (320,240), quality=92)
    for o in ('masks','jpeg_masks'): (path/o).mkdir()
    for o in res:
        grey = np.asarray(Image.open(o).convert('L'))
        Image.fromarray(grey//64).save(mask_file(o))
        Image.fromarray((grey>128).astype(np.uint8)*255).save(jpeg_mask_file(o), quality=95)
    return res

# Targets, by the number of a photo

def number(o): return int(o.stem)
def beside(o, folder, ext): return o.parents[2]/folder/f'{o.stem}.{ext}'
def mask_file(o): return beside(o, 'masks', 'png')
def jpeg_mask_file(o): return beside(o, 'jpeg_masks', 'jpg')
def next_photo(o): return o.parents[1]/'abc'[(i:=(number(o)+1)%N)%3]/f'{i:03}.jpg'
def labels(o): return ['abcd'[number(o)%4]] + ['e']*(number(o)%2)
def points(o): return [[10.*number(o), 20.], [150., 11.*number(o)]]
def boxes(o): return [[5.*i, 10., 100.+number(o), 120.+i] for i in range(1+number(o)%3)]
def unlabelled(o):
    "A number, but for two photos that are dropped"
    if number(o) in (2,9): raise SkipItemException()
    return number(o)/7
def box_labels(o): return ['cat','dog','hat'][:1+number(o)%3]

class LateFlip(RandTransform):
    "`FlipItem` after `Resize`, before which it comes by its order"
    order = 5
    def __init__(self): super().__init__(p=.5)
    def encodes(self, x:Image.Image): return x.flip_lr()

def normalize(): return Normalize.from_stats(*imagenet_stats, cuda=False)

# Functions, because fastai's transforms and blocks have state: each side gets its own
resized = dict(
    crop      = lambda: dict(),
    crop_64   = lambda: dict(item_tfms=Resize(64)),
    crop_rect = lambda: dict(item_tfms=Resize((48,80))),
    crop_tall = lambda: dict(item_tfms=Resize((160,96))),
    crop_224  = lambda: dict(item_tfms=Resize(224)),
    bicubic   = lambda: dict(item_tfms=Resize(96, resamples=(Image.Resampling.BICUBIC,NEAREST))),
    nearest   = lambda: dict(item_tfms=Resize(32, resamples=(NEAREST,NEAREST))),
    squish    = lambda: dict(item_tfms=Resize(64, method='squish')),
    squish_rect = lambda: dict(item_tfms=Resize((48,80), method='squish')),
    pad       = lambda: dict(item_tfms=Resize(64, method='pad')),
    pad_zeros = lambda: dict(item_tfms=Resize((48,80), method='pad', pad_mode='zeros')),
    pad_border= lambda: dict(item_tfms=Resize((80,48), method='pad', pad_mode='border')),
    late_flip = lambda: dict(item_tfms=[Resize(96), LateFlip()]),
    normalize = lambda: dict(batch_tfms=normalize()),
    aug       = lambda: dict(item_tfms=Resize(96), batch_tfms=aug_transforms(size=64)),
    strings   = lambda: dict(get_x=lambda o: str(o)),
    grey      = lambda: dict(blocks=(ImageBlock(PILImageBW),CategoryBlock)),
    mask_input= lambda: dict(blocks=(ImageBlock(PILMask),CategoryBlock), get_x=mask_file),
    mask      = lambda: dict(blocks=(ImageBlock,MaskBlock(list('wxyz'))), get_y=mask_file),
    mask_pad  = lambda: dict(blocks=(ImageBlock,MaskBlock), get_y=mask_file, item_tfms=Resize(64, method='pad', pad_mode='zeros')),
    mask_squish = lambda: dict(blocks=(ImageBlock,MaskBlock), get_y=mask_file, item_tfms=Resize(64, method='squish')),
    mask_jpeg = lambda: dict(blocks=(ImageBlock(PILMask),MaskBlock), get_x=jpeg_mask_file, get_y=jpeg_mask_file, item_tfms=Resize(32)),
    image_target = lambda: dict(blocks=(ImageBlock,ImageBlock), get_y=next_photo),
    grey_target  = lambda: dict(blocks=(ImageBlock,ImageBlock(PILImageBW)), get_y=noop),
    two_inputs= lambda: dict(blocks=(ImageBlock,ImageBlock,CategoryBlock), getters=[noop,next_photo,parent_label], get_y=None, n_inp=2),
    multi     = lambda: dict(blocks=(ImageBlock,MultiCategoryBlock), get_y=labels),
    regression= lambda: dict(blocks=(ImageBlock,RegressionBlock), get_y=lambda o: number(o)/7),
    random_target = lambda: dict(blocks=(ImageBlock,RegressionBlock), get_y=lambda o: random.random()),
    skipped   = lambda: dict(blocks=(ImageBlock,RegressionBlock), get_y=unlabelled),
    noisy_label = lambda: dict(blocks=(ImageBlock,CategoryBlock(['a','b'])), get_y=lambda o: 'ab'[random.random()<.2]),
    two_regressions = lambda: dict(blocks=(ImageBlock,RegressionBlock(n_out=2)), get_y=lambda o: [number(o)/7,-number(o)/3]),
)
only_decoded = dict(
    whole     = lambda: dict(item_tfms=None, bs=1),
    whole_skipped = lambda: dict(blocks=(ImageBlock,RegressionBlock), get_y=unlabelled, item_tfms=None, bs=1),
    whole_random_target = lambda: dict(blocks=(ImageBlock,RegressionBlock), get_y=lambda o: random.random(), item_tfms=None, bs=1),
    whole_grey= lambda: dict(blocks=(ImageBlock(PILImageBW),CategoryBlock), item_tfms=None, bs=1),
    whole_mask= lambda: dict(blocks=(ImageBlock,MaskBlock), get_y=mask_file, item_tfms=None, bs=1),
    random_resized = lambda: dict(item_tfms=RandomResizedCrop(64)),
    random_mask = lambda: dict(blocks=(ImageBlock,MaskBlock), get_y=mask_file, item_tfms=RandomResizedCrop(64, min_scale=.3)),
    random_crop = lambda: dict(item_tfms=RandomCrop(64), batch_tfms=[*aug_transforms(), normalize()]),
    crop_pad  = lambda: dict(item_tfms=CropPad(300)),
    flip      = lambda: dict(item_tfms=[Resize(64), FlipItem()]),
    dihedral  = lambda: dict(item_tfms=[DihedralItem(), Resize(64)], batch_tfms=normalize()),
    points    = lambda: dict(blocks=(ImageBlock,PointBlock), get_y=points),
    points_aug= lambda: dict(blocks=(ImageBlock,PointBlock), get_y=points, batch_tfms=aug_transforms(size=48)),
    boxes     = lambda: dict(blocks=(ImageBlock,BBoxBlock,BBoxLblBlock), get_y=[boxes,box_labels], n_inp=1),
    boxes_squish = lambda: dict(blocks=(ImageBlock,BBoxBlock,BBoxLblBlock), get_y=[boxes,box_labels], n_inp=1,
                                item_tfms=[Resize(64, method='squish'), FlipItem()]),
)
cases = {**resized, **only_decoded}

def loaders(files, blocks=(ImageBlock,CategoryBlock), get_y=parent_label, item_tfms=Resize(96), bs=bs, num_workers=0, drop_last=None,
            n_valid=n_valid, **kwargs):
    "Stock's loaders, on the CPU, with the last `n_valid` of `files` for validation"
    block = DataBlock(blocks, get_y=get_y, item_tfms=item_tfms, splitter=IndexSplitter(range(len(files)-n_valid,len(files))), **kwargs)
    return block.dataloaders(files, bs=bs, num_workers=num_workers, drop_last=drop_last, device='cpu')

class Side(NamedTuple):
    "One of the two that stand side by side"
    epochs:list # [epoch][train or valid][batch]
    randoms:tuple # The random states at the end
    misses:list # After each epoch
    dls:DataLoaders

def run(make, n_epochs=2, **options):
    "`n_epochs` from seed 0 of the loaders that `make` makes: stock's, or in memory if there are `options`"
    set_seed(0)
    dls,epochs,misses = make(),[],[]
    if options: dls.in_memory(**options)
    for _ in range(n_epochs):
        epochs += batches(dls)
        if options: misses.append(dls.memory.misses)
    return Side(epochs, random_states(), misses, dls)

def layout(t): return [stride for stride,n in zip(t.stride(), t.shape) if n>1]  # the stride of a single element means nothing

def assert_same(ours, stock, pixels=True):
    "Types, dtypes, shapes, strides and metadata are the same, and all values but those of images if not `pixels`"
    assert type(ours) is type(stock)
    if isinstance(stock, (list,tuple)):
        assert len(ours)==len(stock)
        for o in zip(ours, stock): assert_same(*o, pixels)
        return
    assert (ours.dtype, ours.shape, layout(ours), ours.device)==(stock.dtype, stock.shape, layout(stock), stock.device)
    assert str(vars(ours))==str(vars(stock))
    if pixels or not isinstance(stock, TensorImageBase): assert torch.equal(ours, stock)

def images(side, i_loader):
    "The images of a loader over all epochs, input and target alike"
    return [im for epoch in side.epochs for b in epoch[i_loader] for t in b if isinstance(t, TensorImageBase) for im in t]

def likeness(ours, stock, peak=1):
    "PSNR in dB over pairs of images, on average; an exact copy counts as 99 dB"
    return np.mean([min(psnr(a, b, peak if a.is_floating_point() else 255), 99) for a,b in zip(ours, stock, strict=True)])

def with_workers(cases, *names): return [(o,0) for o in cases]+[(o,2) for o in names]

@pytest.mark.parametrize('case,num_workers', with_workers(cases, 'crop', 'pad', 'random_resized', 'late_flip', 'flip', 'aug', 'mask', 'boxes', 'whole'))
def test_decoded_is_bit_identical(case, num_workers, files):
    make = lambda: loaders(files, num_workers=num_workers, **cases[case]())
    stock,ours = run(make),run(make, store='decoded')
    assert_same(ours.epochs, stock.epochs)
    assert ours.randoms==stock.randoms
    memory = ours.dls.memory
    assert memory.store=='decoded' and (memory.cached_frac==1 or 'skipped' in case) and ours.misses[1]==ours.misses[0]

@pytest.mark.parametrize('case,num_workers', with_workers(resized, 'crop', 'pad', 'late_flip', 'aug', 'mask', 'skipped', 'random_target'))
def test_resized_is_alike(case, num_workers, files):
    "The same but for pixels, and those within 50 dB in validation"
    make = lambda: loaders(files, num_workers=num_workers, **resized[case]())
    stock,ours = run(make),run(make, store='auto')
    assert_same(ours.epochs, stock.epochs, pixels=False)
    assert ours.randoms==stock.randoms
    memory = ours.dls.memory
    assert memory.store=='resized' and (memory.cached_frac==1 or 'skipped' in case) and ours.misses[1]==ours.misses[0]
    assert likeness(images(ours,1), images(stock,1), peak=1/.224 if case=='normalize' else 1) >= 50

@pytest.mark.parametrize('case', ['mask','mask_pad','mask_squish','mask_input'])
def test_masks_keep_their_codes(case, files):
    make = lambda: loaders(files, **resized[case]())
    stock,ours = run(make),run(make, store='resized')
    codes = lambda side,i: torch.stack([o for o in images(side, i) if o.dim()==2])
    assert set(codes(ours,0).unique().tolist())<={0,1,2,3}
    assert (codes(ours,1)==codes(stock,1)).float().mean() > .999

def small_guard(): return MemoryGuard(limit_bytes=1_500_000)  # for half of the photos

@pytest.mark.parametrize('options,kept', [(dict(mode='preload'),1), (dict(mode='stream'),0), (dict(guard=small_guard()),.5),
                                          (dict(guard=small_guard(), on_full='stream'),0)], ids=['preload','stream','part','too full'])
@pytest.mark.parametrize('num_workers', [0,2])
def test_every_mode(options, kept, num_workers, files):
    make = lambda: loaders(files, num_workers=num_workers)
    stock,ours = run(make),run(make, store='decoded', **options)
    assert_same(ours.epochs, stock.epochs)
    assert ours.randoms==stock.randoms
    assert abs(ours.dls.memory.cached_frac-kept) <= (.4 if kept==.5 else 0)

@pytest.mark.parametrize('num_workers', [0,2])
@pytest.mark.parametrize('store', ['decoded','resized'])
def test_short_last_batch_in_training(store, num_workers, files):
    make = lambda: loaders(files, num_workers=num_workers, drop_last=False)
    stock,ours = run(make),run(make, store=store)
    assert_same(ours.epochs, stock.epochs, pixels=store=='decoded')
    assert ours.randoms==stock.randoms

@pytest.mark.parametrize('tfms', [dict(after_item=[Resize(64),ToTensor]), dict(after_item=[Resize(64),ToTensor], after_batch=[IntToFloatTensor])],
                         ids=['bytes','floats'])
@pytest.mark.parametrize('num_workers', [0,2])
@pytest.mark.parametrize('store', ['decoded','resized'])
def test_mid_level(tfms, num_workers, store, files):
    "Without a `DataBlock`; with no batch transform, a batch of bytes"
    splits = list(range(n_train)),list(range(n_train,N))
    make = lambda: Datasets(files, [[PILImage.create],[parent_label,Categorize()]], splits=splits).dataloaders(
        bs=bs, num_workers=num_workers, device='cpu', **tfms)
    stock,ours = run(make),run(make, store=store)
    assert_same(ours.epochs, stock.epochs, pixels=store=='decoded')
    assert likeness(images(ours,1), images(stock,1)) >= 50

def test_other_sizes_in_a_batch(files):
    "Stock can't collate photos of several sizes: neither do we, with the same message"
    errors = []
    for in_memory in (False,True):
        dls = loaders(files, item_tfms=None, bs=1)
        if in_memory: dls.in_memory()
        with pytest.raises(Exception) as e: list(dls.valid.new(bs=bs))
        errors.append((e.type, str(e.value)))
    assert errors[0]==errors[1]

# Where training crops lie

def best_shift(ours, stock, n=2):
    "(right, down) in pixels by which `stock` has to be moved to be most like `ours`"
    window = lambda t,x=0,y=0: t[:, n+y:t.shape[1]-n+y, n+x:t.shape[2]-n+x].float()
    shifts = [(x,y) for x in range(-n,n+1) for y in range(-n,n+1)]
    return min(shifts, key=lambda o: float((window(ours)-window(stock,*o)).square().mean()))

@pytest.mark.parametrize('case', ['crop','crop_rect','crop_tall','crop_224','pad','pad_zeros','pad_border','grey','image_target','two_inputs'])
def test_training_crops_are_stocks_windows(case, files):
    "Of all shifts by up to two pixels, most training crops are most like stock's with none, and the others with one pixel"
    make = lambda: loaders(files, **resized[case]())
    stock,ours = run(make),run(make, store='resized')
    shifts = np.array([best_shift(*o) for o in zip(images(ours,0), images(stock,0), strict=True)])
    assert np.abs(shifts).max()<=1 and (shifts==0).all(1).mean()>=.75

def offsets(ours, stock, full):
    "How far `ours` lies from `stock` in source pixels, right and down, for images of `gradient(full)`"
    d = (ours[:2].double()-stock[:2].double()).mean((1,2))
    return np.abs(d.numpy()*(np.array(full)-1))

@pytest.mark.parametrize('full', [(256,192),(192,256),(500,375),(640,64),(40,30)], ids=str)
@pytest.mark.parametrize('size', [(64,64),(48,80),(33,57)], ids=str)
def test_training_crops_lie_where_stocks_lie(full, size, tmp_path):
    "Read off the pixels: never as far as one pixel of the batch from stock's crop, half that on average, and validation crops not at all"
    for i in range(N): gradient(full).save(tmp_path/f'{i:03}.png')
    make = lambda: loaders(sorted(tmp_path.ls()), get_y=lambda o: 'a', item_tfms=Resize(size))
    stock,ours = run(make, n_epochs=4),run(make, n_epochs=4, store='resized')
    step = min(full[0]/size[1], full[1]/size[0])  # source pixels per pixel of the batch
    train,valid = (np.stack([offsets(*o, full) for o in zip(images(ours,i), images(stock,i), strict=True)]) for i in (0,1))
    noise = .002*max(full)  # half a level of 255
    assert train.max() <= step+noise and train.mean() <= step/2+noise
    assert valid.max() <= .1*step+noise

def lines(ours, stock, full):
    "How far each column and row of `ours` lies from that of `stock` in source pixels, for images of `gradient(full)`"
    d = (ours[:2].double()-stock[:2].double()).abs()
    return [d[0].median(0)[0].numpy()*(full[0]-1), d[1].median(1)[0].numpy()*(full[1]-1)]

@pytest.mark.parametrize('full', [(500,375),(375,500),(300,60),(40,30)], ids=str)
@pytest.mark.parametrize('pad_mode', ['reflection','border','zeros'])
def test_padded_training_images_lie_where_stocks_lie(full, pad_mode, tmp_path):
    "So do the rows and columns of the padding; only the line where zeros meet the photo may be another mix of both"
    for i in range(N): gradient(full).save(tmp_path/f'{i:03}.png')
    make = lambda: loaders(sorted(tmp_path.ls()), get_y=lambda o: 'a', item_tfms=Resize(64, method='pad', pad_mode=pad_mode))
    stock,ours = run(make, n_epochs=4),run(make, n_epochs=4, store='resized')
    step = max(full)/64
    for pair in zip(images(ours,0), images(stock,0), strict=True):
        for o in lines(*pair, full): assert (o > step+.002*max(full)).sum() <= (2 if pad_mode=='zeros' else 0)

@pytest.mark.parametrize('method', ['crop','pad','squish'])
def test_image_and_mask_are_cut_alike(method, tmp_path):
    for i in range(N): gradient((500,375)).save(tmp_path/f'{i:03}.png')
    make = lambda: loaders(sorted(tmp_path.ls()), blocks=(ImageBlock(PILImageBW),MaskBlock), get_y=noop, item_tfms=Resize(64, method=method, pad_mode='zeros'))
    for epoch in run(make, store='resized').epochs:
        for x,y in epoch[0]+epoch[1]: assert abs(float((x[:,0]*255-y).mean())) < 1

# Sizes

@pytest.mark.parametrize('full', [(500,375),(2000,1500)], ids=str)
def test_scaled_decoding(full, tmp_path):
    "JPEGs decoded at a fraction of their size keep 50 dB at every fraction"
    files = photo_folder(tmp_path, 4, full, quality=90)
    def dB(size):
        make = lambda: loaders(files, get_y=lambda o: 'a', item_tfms=Resize(size), n_valid=3)
        return likeness(*(images(run(make, n_epochs=1, **o), 1) for o in (dict(store='resized'),{})))
    found = {size: round(dB(size),1) for size in (48,64,80,96,128,160,192,224)}
    assert min(found.values()) >= 50, found

@pytest.mark.parametrize('full,size', [((32,32),64), ((48,32),64), ((28,28),(64,40)), ((600,20),64), ((30,420),64), ((1200,100),64), ((64,64),64), ((3,5),16),
                                       ((1,1),8)], ids=str)
@pytest.mark.parametrize('method', ['crop','squish','pad'])
def test_small_and_long_images(full, size, method, tmp_path):
    files = photo_folder(tmp_path, N, full, ext='png')
    make = lambda: loaders(files, item_tfms=Resize(size, method=method))
    stock,ours = run(make),run(make, store='resized')
    assert_same(ours.epochs, stock.epochs, pixels=False)
    assert likeness(images(ours,1), images(stock,1)) >= 50

# Formats

def encoded(im, format, **kwargs):
    res = io.BytesIO()
    im.save(res, format, **kwargs)
    return res.getvalue()

def png(a, interlaced=False):
    "`a` (height, width, 3), of 8 or 16 bits, as the PNG that Pillow does not write: interlaced, or of 16 bits"
    passes = [(0,0,8,8),(4,0,8,8),(0,4,4,8),(2,0,4,4),(0,2,2,4),(1,0,2,2),(0,1,1,2)] if interlaced else [(0,0,1,1)]
    rows = [row for x,y,dx,dy in passes for row in a.astype(a.dtype.newbyteorder('>'))[y::dy,x::dx]]
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
    header = struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 8*a.itemsize, 2, 0, 0, int(interlaced))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b''.join(b'\0'+o.tobytes() for o in rows if o.size)))
            + chunk(b'IEND', b''))

def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif

def with_alpha(im):
    im = im.convert('RGBA')
    im.putalpha(im.convert('L'))
    return im

def grey16(im): return Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*200)

formats = {
    'jpeg': lambda im: encoded(im, 'jpeg', quality=90),
    'jpeg grey': lambda im: encoded(im.convert('L'), 'jpeg'),
    'jpeg CMYK': lambda im: encoded(im.convert('CMYK'), 'jpeg'),
    'jpeg progressive': lambda im: encoded(im, 'jpeg', progressive=True),
    'jpeg 4:4:4': lambda im: encoded(im, 'jpeg', subsampling=0),
    'jpeg turned by EXIF': lambda im: encoded(im, 'jpeg', exif=rotated()),
    'png': lambda im: encoded(im, 'png'),
    'png grey': lambda im: encoded(im.convert('L'), 'png'),
    'png black and white': lambda im: encoded(im.convert('1', dither=Image.Dither.NONE), 'png'),
    'png palette': lambda im: encoded(im.quantize(64), 'png'),
    'png transparent palette': lambda im: encoded(im.quantize(64), 'png', transparency=3),
    'png transparent colour': lambda im: encoded(im, 'png', transparency=im.getpixel((0,0))),
    'png RGBA': lambda im: encoded(with_alpha(im), 'png'),
    'png grey alpha': lambda im: encoded(with_alpha(im).convert('LA'), 'png'),
    'png 16-bit grey': lambda im: encoded(grey16(im), 'png'),
    'png 16-bit': lambda im: png(np.asarray(im).astype(np.uint16)*257),
    'png interlaced': lambda im: png(np.asarray(im), interlaced=True),
    'png interlaced 16-bit': lambda im: png(np.asarray(im).astype(np.uint16)*257, interlaced=True),
    'webp': lambda im: encoded(im, 'webp'),
    'webp lossless': lambda im: encoded(im, 'webp', lossless=True),
    'webp RGBA': lambda im: encoded(with_alpha(im), 'webp'),
    'gif': lambda im: encoded(im, 'gif'),
    'gif animated': lambda im: encoded(im, 'gif', save_all=True, append_images=[im.rotate(180)]),
    'gif transparent': lambda im: encoded(im.quantize(32), 'gif', transparency=2),
    'bmp': lambda im: encoded(im, 'bmp'),
    'bmp palette': lambda im: encoded(im.quantize(64), 'bmp'),
    'tiff': lambda im: encoded(im, 'tiff'),
    'tiff LZW': lambda im: encoded(im, 'tiff', compression='tiff_lzw'),
    'tiff CMYK': lambda im: encoded(im.convert('CMYK'), 'tiff'),
    'tiff 16-bit': lambda im: encoded(grey16(im), 'tiff'),
    'tiff 32-bit': lambda im: encoded(im.convert('I'), 'tiff'),
    'tiff float': lambda im: encoded(im.convert('F'), 'tiff'),
    'tiff pages': lambda im: encoded(im, 'tiff', save_all=True, append_images=[im.rotate(180)]),
}

@pytest.mark.parametrize('cls', [PILImage,PILImageBW,PILMask], ids=lambda o: o.__name__)
@pytest.mark.parametrize('format', formats)
def test_formats(format, cls, tmp_path):
    "What stock opens, we open: the same pixels, or 50 dB"
    files = [tmp_path/f'{i:03}.{format.split()[0]}' for i in range(5)]
    for i,o in enumerate(files): o.write_bytes(formats[format](photo(i, (199,150))))
    for store,item_tfms in dict(decoded=None, resized=Resize(64)).items():
        make = lambda: loaders(files, (ImageBlock(cls),CategoryBlock), item_tfms=item_tfms, n_valid=2)
        stock,ours = run(make),run(make, store=store)
        assert_same(ours.epochs, stock.epochs, pixels=store=='decoded')
        assert likeness(images(ours,1), images(stock,1)) >= 50

def cut_short(frac, **kwargs):
    def write(path):
        data = encoded(photo(0), 'jpeg', **kwargs)
        path.write_bytes(data[:int(len(data)*frac)])
    return write

def bad_crc(path):
    data = bytearray(encoded(photo(0), 'png'))
    data[len(data)//2] ^= 0xff
    path.write_bytes(data)

refusals = {
    'truncated': cut_short(.5), 'headers alone': cut_short(.03), 'nearly whole': cut_short(.97), 'truncated progressive': cut_short(.5, progressive=True),
    'no end': lambda path: path.write_bytes(encoded(photo(0), 'jpeg')[:-2]),
    'text': lambda path: path.write_text('This is no image.'), 'empty': lambda path: path.write_bytes(b''),
    'missing': lambda path: None, 'folder': lambda path: path.mkdir(), 'bad CRC': bad_crc,
    'truncated png': lambda path: path.write_bytes(encoded(photo(0), 'png')[:5000]),
    'bomb': lambda path: photo(0, (1200,600)).save(path),
}

def refusal(dl):
    "What iterating `dl` raises, if anything"
    try: return list(dl) and None
    except Exception as e: return e.with_traceback(None)  # which would keep the workers alive

@pytest.mark.parametrize('store', ['decoded','resized'])
@pytest.mark.parametrize('bad,num_workers', with_workers(refusals, 'truncated', 'text', 'missing'))
def test_refusals(bad, num_workers, store, files, tmp_path, monkeypatch):
    "What stock refuses, we refuse with the same type of exception, in every epoch; and what it lets pass, we let pass"
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 300_000)
    path = tmp_path/'bad.jpg'
    refusals[bad](path)
    some = [path if i==n_train+1 else o for i,o in enumerate(files)]
    make = lambda: loaders(some, num_workers=num_workers, get_y=lambda o: 'a')
    stock,dls = refusal(make().valid),make().in_memory(store=store)
    for _ in range(2):
        ours = refusal(dls.valid)
        assert type(ours) is type(stock)
        if path.name in str(stock): assert path.name in str(ours)
    if bad!='no end': assert stock is not None

@pytest.mark.parametrize('store', ['decoded','resized'])
def test_truncated_images_that_the_user_lets_pass(store, files, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    cut_short(.5)(tmp_path/'000.jpg')
    make = lambda: loaders([tmp_path/'000.jpg']*N, get_y=lambda o: 'a')
    stock,ours = run(make),run(make, store=store)
    assert_same(ours.epochs, stock.epochs, pixels=store=='decoded')
    assert likeness(images(ours,1), images(stock,1)) >= 50
