"The published examples of the tutorials, small: what comes out is as before, with and without workers, and after one pass the folder may go"
import csv, pickle, random, shutil
from functools import partial

import numpy as np
import pytest
import torch
from fastai.vision.all import (IntToFloatTensor, L, PILImage, RandomSplitter, Resize, TfmdLists, ToTensor, Transform, fastuple, parent_label, tensor)
from fastmem.all import *
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2
from helpers import photo, photo_folder

n,size = 48,(89,109)
steady = v2.Compose([v2.CenterCrop(64), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
flips = v2.Compose([steady, v2.RandomHorizontalFlip()])

# --- as published ---

class Faces(Dataset):
    "Photos with attributes in a CSV file"
    def __init__(self, folder, transform=None):
        with (folder/'attributes.csv').open() as f: self.rows = list(csv.reader(f))[1:]
        self.folder,self.transform = folder,transform
    def __len__(self): return len(self.rows)
    def open(self, i): return Image.open(self.folder/'faces'/self.rows[i][0]).convert('RGB')
    def __getitem__(self, i):
        im = self.open(i)
        return im if self.transform is None else self.transform(im),torch.tensor([int(o) for o in self.rows[i][1:]])

class MappedFaces(Faces):
    def __init__(self, folder, transform=None):
        super().__init__(folder, transform)
        self.pixels = np.memmap(folder/'faces.dat', np.uint8, 'r', shape=(n,*size[::-1],3))
    def open(self, i): return Image.fromarray(self.pixels[i])

class Paths(Dataset):
    def __init__(self, paths, labels, transform=None): self.paths,self.labels,self.transform = paths,labels,transform
    def __len__(self): return len(self.paths)
    def open(self, i): return Image.open(self.paths[i]).convert('RGB')
    def __getitem__(self, i):
        im = self.open(i)
        return im if self.transform is None else self.transform(im),self.labels[i]

class MappedPaths(Paths):
    def __init__(self, paths, labels, transform=None):
        super().__init__(paths, labels, transform)
        self.pixels = np.memmap(paths[0].parents[1]/'faces.dat', np.uint8, 'r', shape=(n,*size[::-1],3))
    def open(self, i): return Image.fromarray(self.pixels[i])

class TensorFiles(Dataset):
    def __init__(self, folder, list_IDs, labels): self.folder,self.list_IDs,self.labels = folder,list_IDs,labels
    def __len__(self): return len(self.list_IDs)
    def __getitem__(self, index):
        ID = self.list_IDs[index]
        return torch.load(self.folder/f'{ID}.pt'),self.labels[ID]

class InRAM(Dataset):
    def __init__(self, n=n): self.X,self.y = torch.arange(4.*n).view(n,4),torch.arange(n)
    def __len__(self): return len(self.X)
    def __getitem__(self, i): return self.X[i],self.y[i]

class Spectra(Dataset):
    "Computed when asked for"
    def __len__(self): return n
    def __getitem__(self, i): return torch.fft.rfft(torch.sin(torch.arange(256)*(.01+.001*i))).abs(),i%10

class RandomTensors(Dataset):
    def __len__(self): return n
    def __getitem__(self, i): return torch.randn(3, 8, 8),torch.randint(10, ()).item()

# --- with fastmem ---

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'faces').mkdir()
    mapped = np.memmap(tmp_path/'faces.dat', np.uint8, 'w+', shape=(n,*size[::-1],3))
    for i in range(n):
        photo(i, size).save(tmp_path/'faces'/f'{i:03}.jpg')
        mapped[i] = np.asarray(Image.open(tmp_path/'faces'/f'{i:03}.jpg'))
    mapped.flush()
    with (tmp_path/'attributes.csv').open('w') as f: csv.writer(f).writerows([('file','smiling','blond'), *((f'{i:03}.jpg',i%2,i%3) for i in range(n))])
    return tmp_path

def paths(folder):
    res = sorted((folder/'faces').iterdir())
    return res,[i%7 for i in range(n)]

def memory(ds): return (ds if isinstance(ds, CachedDataset) else ds.loader).memory

images = dict(plain=lambda folder,tfms,**kw: (ImageFolder(folder, tfms), ImageFolder(folder, tfms, loader=cached(pil_loader, **kw))),
              wrapped=lambda folder,tfms,**kw: (ImageFolder(folder, tfms), CachedDataset(ImageFolder(folder), tfms, **kw)),
              faces=lambda folder,tfms,**kw: (Faces(folder, tfms), CachedDataset(Faces(folder), tfms, **kw)),
              mapped_faces=lambda folder,tfms,**kw: (MappedFaces(folder, tfms), CachedDataset(MappedFaces(folder), tfms, **kw)),
              paths=lambda folder,tfms,**kw: (Paths(*paths(folder), tfms), CachedDataset(Paths(*paths(folder)), tfms, **kw)),
              mapped_paths=lambda folder,tfms,**kw: (MappedPaths(*paths(folder), tfms), CachedDataset(MappedPaths(*paths(folder)), tfms, **kw)))
others = dict(in_ram=InRAM, lazy=Spectra)

def batches(ds, num_workers=0): return list(DataLoader(ds, batch_size=8, num_workers=num_workers))
def alike(a, b): return len(a)==len(b) and all(x.equal(y) and t.equal(u) for (x,t),(y,u) in zip(a,b))

both = pytest.mark.parametrize('num_workers', [0,2])

@both
@pytest.mark.parametrize('example', images)
def test_images_are_as_published_and_their_folder_may_go(folder, example, num_workers):
    stock,ours = images[example](folder, steady)
    want = batches(stock)
    assert alike(batches(ours, num_workers), want)
    shutil.rmtree(folder)
    assert alike(batches(ours, num_workers), want) and memory(ours).misses==n==memory(ours).n_cached

@both
@pytest.mark.parametrize('example', ['plain','wrapped','paths','mapped_paths'])
def test_random_augmentation_is_another_in_each_epoch(folder, example, num_workers):
    _,ours = images[example](folder, flips)
    batches(ours, num_workers); shutil.rmtree(folder)
    a,b = (torch.cat([x for x,_ in batches(ours, num_workers)]) for _ in range(2))
    same = (a==b).flatten(1).all(1)
    assert bool(0<same.sum()<n) and bool((a[~same]==b[~same].flip(-1)).all()) and memory(ours).misses==n

@both
@pytest.mark.parametrize('example', ['plain','faces','mapped_faces'])
def test_under_a_limit_smaller_than_the_decoded_size(folder, example, num_workers, capfd):
    stock,ours = images[example](folder, steady, guard=MemoryGuard(limit_bytes=700_000, reserve_bytes=0))  # of 1.4 MB
    for _ in range(2): assert alike(batches(ours, num_workers), batches(stock))
    cache = ours.cache if isinstance(ours, CachedDataset) else ours.loader.cache
    assert 10<memory(ours).n_cached<30 and cache.arena.used_bytes<=800_000 and capfd.readouterr().out.count('fastmem:')==1

@both
def test_five_epochs_over_pt_files_with_a_lookup_of_labels(tmp_path, num_workers):
    (folder := tmp_path/'pt').mkdir()
    ids = [f'id-{i}' for i in range(50)]
    for i,o in enumerate(ids): torch.save(torch.full((4,), float(i)), folder/f'{o}.pt')
    partition,labels = {'train': ids[:40], 'validation': ids[40:]},{o: i for i,o in enumerate(ids)}
    stock = [TensorFiles(folder, o, labels) for o in partition.values()]
    def n_seen(datasets): return [sum(len(x) for x,_ in batches(o, num_workers)) for o in datasets]
    want = [n_seen(stock) for _ in range(5)]
    ours = [CachedDataset(o) for o in stock]
    got = [n_seen(ours)]; shutil.rmtree(folder)
    assert got+[n_seen(ours) for _ in range(4)]==want==[[40,10]]*5
    assert [(o.memory.misses,o.memory.hits) for o in ours]==[(40,160),(10,40)] and all((x[:,0]==y).all() for o in ours for x,y in batches(o))

@both
@pytest.mark.parametrize('example', others)
def test_a_dataset_in_ram_and_a_lazy_one(example, num_workers):
    stock = others[example](); ours = CachedDataset(stock)
    for _ in range(3): assert alike(batches(ours, num_workers), batches(stock))
    assert (ours.memory.misses,ours.memory.hits)==(n,2*n)

@both
def test_a_generated_dataset_would_be_frozen(num_workers):
    with pytest.raises(ValueError, match=r'RandomTensors differs in `sample\[0\]` .* a cache would freeze it.*transform='): CachedDataset(RandomTensors())
    fixed = CachedDataset(RandomTensors(), on_random='freeze')
    assert alike(batches(fixed, num_workers), batches(fixed, num_workers))

# --- fastai's tutorial of Siamese pairs: two images by one transform ---

class SiameseImage(fastuple): pass

class SiameseTransform(Transform):
    "As published (docs.fast.ai/tutorial.siamese), but for `open`; training pairs are drawn anew each time"
    def __init__(self, files, label_func, splits, open=PILImage.create):
        self.open,self.label_func,self.labels = open,label_func,files.map(label_func).unique()
        self.lbl2files = {l: L(f for f in files if label_func(f)==l) for l in self.labels}
        self.valid = {f: self._draw(f) for f in files[splits[1]]}

    def encodes(self, f):
        f2,t = self.valid.get(f) or self._draw(f)
        return SiameseImage(self.open(f), self.open(f2), t)

    def _draw(self, f):
        same = random.random()<.5
        cls = self.label_func(f)
        if not same: cls = random.choice(L(l for l in self.labels if l!=cls))
        return random.choice(self.lbl2files[cls]),same

def side_by_side(files, open, num_workers=0):
    random.seed(3)
    splits = RandomSplitter(seed=42)(files)
    tls = TfmdLists(files, SiameseTransform(files, parent_label, splits, open), splits=splits)
    return tls.dataloaders(after_item=[Resize(32), ToTensor], after_batch=[IntToFloatTensor], bs=4, num_workers=num_workers, device='cpu')

class PILNote(PILImage):
    "A class whose images say where they are from"
    @classmethod
    def create(cls, fn, **kwargs):
        res = super().create(fn, **kwargs)
        res.note = fn.name
        return res

openers = dict(create=PILImage.create, partial=partial(PILImage.create), own=PILNote.create)

@both
@pytest.mark.parametrize('opener', openers)
def test_the_siamese_tutorial(tmp_path, opener, num_workers):
    files = L(photo_folder(tmp_path/'pets', 24, (60,48)))
    fn = openers[opener]; create = cached(fn)
    stock,ours = side_by_side(files, fn),side_by_side(files, create, num_workers)
    for _ in range(2):
        for a,b in zip(stock.valid, ours.valid): assert all(x.equal(y) for x,y in zip(a,b))
    for _ in range(3): assert sum(len(b[0]) for dl in ours.loaders for b in dl)==24
    for o in files: create(o)
    n_misses = create.memory.misses
    shutil.rmtree(tmp_path/'pets')
    list(ours.valid); assert create.memory.misses==n_misses>=24==create.memory.n_cached
    im = create(files[0])
    if opener=='own': assert type(im) is PILNote and im.note==files[0].name
    create.cache.check()

def test_what_is_exported_with_a_cached_opener_needs_no_fastmem(tmp_path):
    files = L(photo_folder(tmp_path, 4, (60,48)))
    dls = side_by_side(files, cached(PILImage.create))
    data = pickle.dumps(dls.train.dataset.tfms)
    assert b'fastmem' not in data
    assert pickle.loads(data)(files[0])[0].size==PILImage.create(files[0]).size

@both
def test_a_dataset_of_pairs(tmp_path, num_workers):
    files = L(photo_folder(tmp_path/'pets', 12, (60,48)))
    class Pairs(Dataset):
        def __len__(self): return 12
        def __getitem__(self, i): return tensor(PILImage.create(files[0]).resize((8,8))),tensor(PILImage.create(files[i]).resize((8,8))),i%2
    want = list(DataLoader(Pairs(), 4)); ours = CachedDataset(Pairs())
    list(DataLoader(ours, 4, num_workers=num_workers)); shutil.rmtree(tmp_path/'pets')
    assert all(x.equal(y) for a,b in zip(DataLoader(ours, 4, num_workers=num_workers), want) for x,y in zip(a,b))

def test_a_path_that_is_more_than_its_name_is_asked_for_each_time(tmp_path):
    file, = photo_folder(tmp_path, 1, (60,48))
    class Page(str): page = 0
    class Frame(type(file)): frame = 0
    load = cached(lambda o: (str(o),getattr(o, 'page', getattr(o, 'frame', None))))
    for cls,k in ((Page,'page'),(Frame,'frame')):
        for n in range(3):
            o = cls(file); setattr(o, k, n)
            assert load(o)==(str(file),n)
    assert load.memory.n_cached==0 and load(file)==load(str(file))==(str(file),None) and load.memory.n_cached==1
    assert cached(PILImage.create)(file, mode='L').mode=='L'
