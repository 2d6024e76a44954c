"Images to load, and stock fastai's DataLoaders of them"
import contextlib, io
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from fastai.vision.all import *

bs = 64

class Work(NamedTuple):
    "What every contestant has to load"
    name:str
    files:list
    px:int=None # Side of the square that a batch shows; `None` if the images have one size already
    bs:int=bs # Batch size

    @property
    def item_tfms(self): return [] if self.px is None else [Resize(self.px)]

def some_files(
    folder, # Searched with its subfolders
    limit:int, # The most files to take, evenly from all
)->list:
    "Paths of images"
    files = sorted(get_image_files(folder))
    if not files: raise SystemExit(f'{folder} holds no images')
    return files[::-(-len(files)//limit)]

def copied_files(
    files:list, # All below `folder`
    folder,
    tmp, # Where to link `folder`
    n_copies:int,
)->list:
    "Every file under `n_copies` paths, so that few photos do as many that lie in memory on their own"
    links = [Path(tmp)/f'copy{i}' for i in range(n_copies)]
    for o in links: o.symlink_to(Path(folder).absolute())
    return [link/o.relative_to(folder) for link in links for o in files]

uint8_block = TransformBlock(type_tfms=PILImage.create) # `ImageBlock` without its `IntToFloatTensor`

def stock_dls(
    work:Work,
    num_workers:int=0,
    image_block=uint8_block, # `ImageBlock` for float batches
    item_tfms=None, # Instead of those of `work`
    vocab:list=None, # Classes, if they need not be looked for
    blocks:tuple=None, # Instead of an image and its class
    get_y=parent_label,
    **kwargs # As for `DataBlock`
)->DataLoaders:
    "Stock fastai; all files but one are trained on"
    blocks = ifnone(blocks, (image_block, CategoryBlock(vocab)))
    block = DataBlock(blocks=blocks, get_y=get_y, splitter=IndexSplitter([0]),
                      item_tfms=ifnone(item_tfms, work.item_tfms), **kwargs)
    return block.dataloaders(work.files, bs=work.bs, num_workers=num_workers, device='cpu')

@contextlib.contextmanager
def quiet():
    "Nothing is printed"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): yield

def warm_dls(dls, **kwargs)->DataLoaders:
    "`dls` in memory, with every image read"
    with quiet(): return dls.in_memory(mode='preload', **kwargs)

def threaded(f, items)->list:
    "`f` of each item, on all cores"
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool: return list(pool.map(f, items))

def read_planes(
    file, # Image
    px:int=None, # Short side to resize to
)->np.ndarray: # (3, height, width), uint8
    "The pixels of `file` as they are best kept for a gather"
    with Image.open(file) as im: im = im.convert('RGB')
    if px is not None:
        m = px/min(im.size)
        im = im.resize([max(px, round(o*m)) for o in im.size], Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(im).transpose(2,0,1))

def centre(planes, px):
    "The square of side `px` in the middle"
    if px is None: return planes
    y,x = ((n-px)//2 for n in planes.shape[1:])
    return planes[:, y:y+px, x:x+px]

def random_window(planes, px):
    "A square of side `px` at a random place"
    if px is None: return planes
    y,x = (int(random.random()*(n-px+1)) for n in planes.shape[1:])
    return planes[:, y:y+px, x:x+px]

def make_large_photos(
    photos, # Files to scale up
    folder, # Where to write
    n:int=25,
    size:tuple=(3000,2000), # (width, height)
    noise_sigma:float=4, # Sensor noise, in levels
)->list: # Of paths
    "Large photos with noise, as JPEGs of quality 95"
    noise = np.random.default_rng(42).normal(0, noise_sigma, (*size[::-1],3)).astype(np.float32)
    (dest := Path(folder)/'large').mkdir()
    def make(i):
        im = Image.open(photos[i%len(photos)]).convert('RGB').resize(size, Image.Resampling.BICUBIC)
        noisy = np.asarray(im) + np.roll(noise, (997*i,1009*i), (0,1))
        Image.fromarray(noisy.clip(0,255).astype(np.uint8)).save(dest/f'{i:03}.jpg', quality=95)
        return dest/f'{i:03}.jpg'
    return threaded(make, range(n))
