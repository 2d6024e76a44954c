"The peers: every way we know to load the same images, each at its best honest settings"
from importlib import import_module

from torch.utils.data import BatchSampler, DataLoader as TorchLoader, Dataset as TorchDataset, RandomSampler

from fastmem.all import *
from contest import *
from data import *

workers_asked = 0,2

# What all of them share

class Pixels:
    "The images of a work, decoded once for all contestants"
    def __init__(self,
        work:Work,
        tmp, # Folder for the files that contestants make
    ):
        self.work,self.tmp = work,Path(tmp)
        self.planes = threaded(partial(read_planes, px=work.px), work.files)
        self.fixed = np.stack([centre(o, work.px) for o in self.planes])
        names = [parent_label(o) for o in work.files]
        self.labels = np.unique(names, return_inverse=True)[1]

def torch_loader(
    dataset, # Of PyTorch's kind
    work:Work,
    num_workers:int,
    **kwargs # As for PyTorch's `DataLoader`
)->TorchLoader:
    "PyTorch's loader, with workers that stay alive from epoch to epoch"
    return TorchLoader(dataset, work.bs, shuffle=True, drop_last=True, num_workers=num_workers, persistent_workers=num_workers>0, **kwargs)

def batch_loader(
    dataset, # Takes a list of indices
    work:Work,
    num_workers:int
)->TorchLoader:
    "PyTorch's loader that asks `dataset` for whole batches"
    sampler = BatchSampler(RandomSampler(range(len(work.files))), work.bs, drop_last=True)
    return TorchLoader(dataset, batch_size=None, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers>0)

# fastai

def stock(pixels, num_workers):
    "Stock fastai, from disk"
    yield Contestant('stock fastai', stock_dls(pixels.work, num_workers).train, "from disk, the files in the system's cache", num_workers)

class ImageDict:
    "The forum's recipe: remember what was opened"
    def __init__(self): self.images = {}
    def __call__(self, file):
        if file not in self.images: self.images[file] = PILImage.create(file)
        return self.images[file]

def recipe_dict(pixels, num_workers):
    "The forum's dict of decoded images"
    dls = stock_dls(pixels.work, num_workers, TransformBlock(type_tfms=ImageDict()))
    yield Contestant('dict of decoded images', dls.train, 'forum recipe, filled as images are used, in each worker anew', num_workers)

def recipe_list(pixels, num_workers):
    "The forum's list of decoded images"
    work = pixels.work
    items = [(o,y) for o,y in zip(threaded(PILImage.create, work.files), map(parent_label, work.files))]
    block = DataBlock(blocks=(TransformBlock(), CategoryBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=IndexSplitter([0]),
                      item_tfms=work.item_tfms)
    dls = block.dataloaders(items, bs=work.bs, num_workers=num_workers, device='cpu')
    yield Contestant('list of decoded images', dls.train, 'forum recipe, all opened before the first epoch', num_workers)

def fastmem_warm(pixels, num_workers):
    "fastmem through ordinary fastai DataLoaders"
    dls = warm_dls(stock_dls(pixels.work, num_workers))
    yield Contestant('fastmem', dls.train, f'`dls.in_memory()`, warm, store {dls.memory.store}, batches {dls.memory.batches}', num_workers)

# Plain PyTorch

class FileDataset(TorchDataset):
    "Images from disk, with torchvision's own transforms"
    def __init__(self, pixels, read, tfm): self.pixels,self.read,self.tfm = pixels,read,tfm
    def __len__(self): return len(self.pixels.labels)
    def __getitem__(self, i): return self.tfm(self.read(str(self.pixels.work.files[i]))),int(self.pixels.labels[i])

def read_pillow(file):
    with Image.open(file) as im: return im.convert('RGB')

def read_torchvision(file):
    from torchvision.io import ImageReadMode, decode_image
    return decode_image(file, ImageReadMode.RGB)

def pytorch_disk(pixels, num_workers):
    "A plain dataset of files"
    from torchvision.transforms import v2
    px = pixels.work.px
    crop = [] if px is None else [v2.Resize(px), v2.RandomCrop(px)]
    for name,read,to_tensor in (('Pillow',read_pillow,[v2.PILToTensor()]), ('torchvision.io',read_torchvision,[])):
        tfms = crop+to_tensor
        dataset = FileDataset(pixels, read, v2.Compose(tfms) if tfms else noop)
        yield Contestant(f'PyTorch from disk, {name}', torch_loader(dataset, pixels.work, num_workers), 'workers stay alive', num_workers)

class ArrayDataset(TorchDataset):
    "Fixed images that lie in one tensor"
    def __init__(self, images, labels): self.images,self.labels = images,torch.from_numpy(labels)
    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return self.images[i],self.labels[i]

def memmap_tensor(pixels):
    "The fixed images in a file, mapped"
    file = pixels.tmp/f'{pixels.work.name}.u8'
    if not file.exists(): pixels.fixed.tofile(file)
    return torch.from_numpy(np.memmap(file, np.uint8, 'r+', shape=pixels.fixed.shape))

def pytorch_memmap(pixels, num_workers):
    "A plain dataset over a mapped file"
    work,dataset = pixels.work,ArrayDataset(memmap_tensor(pixels), pixels.labels)
    yield Contestant('PyTorch over a memmap', torch_loader(dataset, work, num_workers), 'fixed size, no crop; workers stay alive', num_workers)
    yield Contestant('PyTorch over a memmap, by batch', batch_loader(dataset, work, num_workers),
                     'fixed size, no crop; one index of the tensor a batch, on all threads; workers stay alive', num_workers)

# Libraries

def hf_images(batch, shape):
    "A tensor over the bytes of an Arrow column"
    data = batch['image'].combine_chunks()
    start,end = (data.offset+o for o in (0,len(data)))
    offsets = np.frombuffer(data.buffers()[1], np.int32)
    return torch.from_numpy(np.frombuffer(data.buffers()[2], np.uint8)[offsets[start]:offsets[end]].reshape(-1, *shape))

class HFDataset(TorchDataset):
    "Batches of a Hugging Face dataset in Arrow's format"
    def __init__(self, dataset, shape): self.dataset,self.shape = dataset,shape
    def __len__(self): return len(self.dataset)
    def __getitem__(self, idxs):
        batch = self.dataset[idxs]
        return hf_images(batch, self.shape),torch.from_numpy(batch['label'].to_numpy())

def hf_datasets(pixels, num_workers):
    "Hugging Face datasets, in memory"
    datasets = import_module('datasets')
    features = datasets.Features(image=datasets.Value('binary'), label=datasets.Value('int64'))
    ds = datasets.Dataset.from_dict(dict(image=[o.tobytes() for o in pixels.fixed], label=pixels.labels), features=features).with_format('arrow')
    yield Contestant('HF datasets', batch_loader(HFDataset(ds, pixels.fixed.shape[1:]), pixels.work, num_workers),
                     'fixed size, no crop; pixels as bytes in memory, whole batches in Arrow format, read-only; workers stay alive', num_workers)

def tensordict_memmap(pixels, num_workers):
    "tensordict over a memory map"
    td = import_module('tensordict')
    images = td.MemoryMappedTensor.from_tensor(torch.from_numpy(pixels.fixed))
    data = td.TensorDict(dict(image=images, label=torch.from_numpy(pixels.labels)), [len(images)])
    yield Contestant('tensordict memory map', torch_loader(data, pixels.work, num_workers, collate_fn=noop),
                     'fixed size, no crop; one index a batch; workers stay alive', num_workers, images=itemgetter('image'))

def monai_tfms(pixels):
    "MONAI's kind of transforms: `Read` is cached, `Crop` is drawn anew"
    transforms = import_module('monai.transforms')
    class Read(transforms.Transform):
        def __call__(self, i): return pixels.planes[i],int(pixels.labels[i])
    class Crop(transforms.Transform, transforms.RandomizableTrait):
        def __call__(self, data): return torch.from_numpy(random_window(data[0], pixels.work.px)),data[1]
    return transforms.Compose([Read(), Crop()], map_items=False)

def monai_cache(pixels, num_workers):
    "MONAI's CacheDataset"
    monai_data = import_module('monai.data')
    ds = monai_data.CacheDataset(list(range(len(pixels.planes))), monai_tfms(pixels), progress=False, copy_cache=False)
    yield Contestant('MONAI CacheDataset', torch_loader(ds, pixels.work, num_workers),
                     'resized planes cached, hand-tuned random crop after them, copy_cache=False; workers stay alive', num_workers)

class SlotDataset(TorchDataset):
    "The slots of a stocaching cache"
    def __init__(self, cache, labels): self.cache,self.labels = cache,labels
    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return self.cache.get_slot(i),int(self.labels[i])

def stocaching(pixels, num_workers):
    "stocaching's SharedCache"
    lib,fixed = import_module('stocaching'),torch.from_numpy(pixels.fixed)
    with quiet(): cache = lib.SharedCache(fixed.nbytes//2**30+1, len(fixed), fixed.shape[1:])
    for i,o in enumerate(fixed): cache.set_slot(i, o)
    yield Contestant('stocaching', torch_loader(SlotDataset(cache, pixels.labels), pixels.work, num_workers),
                     'fixed size, no crop, filled before; workers stay alive', num_workers)

# FFCV

def random_corner(height, width, px, _):
    "FFCV compiles this: where a random crop of side `px` lies"
    return np.random.randint(0, height-px+1),np.random.randint(0, width-px+1),px,px

def ffcv_decoder(px):
    "FFCV's crop, of random place and unchanged size"
    image = import_module('ffcv.fields.rgb_image')
    if px is None: return image.SimpleRGBImageDecoder()
    class RandomCropDecoder(image.ResizedCropRGBImageDecoder):
        scale,ratio,get_crop_generator = px,1.,property(lambda self: random_corner)
    return RandomCropDecoder((px, px))

class FFCVItems:
    "What FFCV writes to its file"
    def __init__(self, pixels): store_attr()
    def __len__(self): return len(self.pixels.labels)
    def __getitem__(self, i): return self.pixels.planes[i].transpose(1,2,0).copy(),int(self.pixels.labels[i])

def write_beton(pixels):
    "FFCV's file of raw pixels"
    file = pixels.tmp/f'{pixels.work.name}.beton'
    if file.exists(): return file
    fields,writer = import_module('ffcv.fields'),import_module('ffcv.writer')
    with quiet():
        fields = dict(image=fields.RGBImageField(write_mode='raw'), label=fields.IntField())
        writer.DatasetWriter(str(file), fields, num_workers=1).from_indexed_dataset(FFCVItems(pixels))
    return file

def ffcv_raw(pixels, num_workers):
    "FFCV with raw pixels; its workers are threads, and 0 of them means one"
    ffcv,transforms,basics = map(import_module, ('ffcv.loader','ffcv.transforms','ffcv.fields.basics'))
    pipelines = dict(image=[ffcv_decoder(pixels.work.px), transforms.ToTensor(), transforms.ToTorchImage()],
                     label=[basics.IntDecoder(), transforms.ToTensor()])
    loader = ffcv.Loader(str(write_beton(pixels)), batch_size=pixels.work.bs, num_workers=max(1,num_workers), os_cache=True,
                         order=ffcv.OrderOption.RANDOM, drop_last=True, pipelines=pipelines)
    note = f'raw pixels, random crop, channels last, {max(1,num_workers)} threads, batches in memory that is used again'
    yield Contestant('FFCV', loader, note, num_workers)

# Floors

class Gather:
    "Batches of random crops, put together in fresh memory by a bare numpy loop"
    def __init__(self, pixels): store_attr()
    def __iter__(self):
        planes,work = self.pixels.planes,self.pixels.work
        idxs = np.random.permutation(len(planes)).tolist()
        for some in chunked(idxs, work.bs, drop_last=True):
            out = np.empty((work.bs, *self.pixels.fixed.shape[1:]), np.uint8)
            for i,j in enumerate(some): out[i] = random_window(planes[j], work.px)
            yield out,self.pixels.labels[some]

class Memcpy:
    "As many bytes, one batch after the other, copied to where the last batch was"
    def __init__(self, pixels, n_threads):
        store_attr()
        self.out = np.empty_like(pixels.fixed[:pixels.work.bs])
        self.pool = ThreadPoolExecutor(n_threads)
        self.parts = np.array_split(np.arange(pixels.work.bs), n_threads)

    def copy(self, start, part): self.out[part[0]:part[-1]+1] = self.pixels.fixed[start+part[0]:start+part[-1]+1]
    def __iter__(self):
        work = self.pixels.work
        for start in range(0, len(work.files)//work.bs*work.bs, work.bs):
            if self.n_threads==1: self.copy(start, self.parts[0])
            else: list(self.pool.map(partial(self.copy, start), self.parts))
            yield (self.out,)

def bare_gather(pixels): return Contestant('bare gather', Gather(pixels), 'numpy, random crops, fresh memory; no labels')
def memcpy(pixels, n_threads):
    name = f'memcpy, {n_threads} thread{"s" if n_threads>1 else ""}'
    return Contestant(name, Memcpy(pixels, n_threads), 'no order, no crop, no labels')

def floors(pixels, num_workers):
    "What moving the bytes costs, without workers"
    if num_workers==0: yield from (bare_gather(pixels), memcpy(pixels, 1), memcpy(pixels, 2))

# The contest

entries = (stock, recipe_dict, recipe_list, pytorch_disk, pytorch_memmap, hf_datasets, tensordict_memmap, monai_cache, stocaching, ffcv_raw,
           floors, fastmem_warm)

def enter(
    pixels:Pixels,
    num_workers:int,
)->tuple: # (contestants, {name: why it is missing})
    "Every peer that is installed"
    able,missing = [],{}
    for entry in entries:
        try: able += entry(pixels, num_workers)
        except ModuleNotFoundError as e: missing[entry.__name__] = f'not installed: {e}'
        except Exception as e: missing[entry.__name__] = why(e)
    return able,missing

def contest(
    work:Work,
    tmp, # Folder for files
    runs:int, # Of each contestant
)->dict: # For the JSON file
    "All peers at all numbers of workers, in turns"
    pixels = Pixels(work, tmp)
    able,missing = zip(*[enter(pixels, n) for n in workers_asked])
    return dict(n_files=len(work.files), bs=work.bs, px=work.px, missing=merge(*missing), results=interleave(sum(able, []), runs))

def run(
    works:list, # Of `Work`
    tmp, # Folder for files
    runs:int,
)->dict: # For the JSON file
    "The contest on every work"
    return {o.name: contest(o, tmp, runs) for o in works}
