"Pipelines of fastai that are changed while they run, beside the same in memory: what can be changed, and how alike two runs are"
import random
from contextlib import contextmanager
from typing import NamedTuple

import fastai.vision.core
import pandas as pd
from fastai.vision.all import *
from fastmem.all import *
from helpers import Inverted, psnr

# --- images ---

n_files,n_train,n_codes = 12,8,3
labels = 'abc'
folders = 'images','others','masks','other_masks'

def picture(k, size=(24,20)):
    "A smooth image whose colour says which it is: a crop that lies half a pixel off is alike, a flipped one or another image is not"
    x,y = (np.linspace(0, 45, n) for n in size)
    x,y = np.meshgrid(x, y)
    base = [30+60*(k//n%3) for n in (1,3,9)]
    return Image.fromarray(np.stack([base[0]+x, base[1]+y, np.full_like(x, base[2])], -1).astype(np.uint8))

def mask(k, size=(24,20)):
    "A mask of three codes, one half of which lies above"
    w,h = size
    a = np.full((h,w), k%n_codes, np.uint8)
    a[:h//2] = (k+1+k//3%2)%n_codes
    return Image.fromarray(a)

def size_of(k, is_mixed): return (20,26) if is_mixed and k%4==3 else (24,20)

def write_folder(folder, is_mixed=False):
    "Images, masks, and others of each under the same names"
    for o in folders: (folder/o).mkdir(parents=True)
    for k in range(n_files):
        name,size = f'{k:02}_{labels[k%3]}.png',size_of(k, is_mixed)
        picture(k, size).save(folder/'images'/name)
        picture(k+13, size).save(folder/'others'/name)
        mask(k, size).save(folder/'masks'/name)
        mask(k+1, size).save(folder/'other_masks'/name)
    return folder

# --- pipelines ---

class Beside:
    "A getter of the user's: the file of the same name in a folder"
    def __init__(self, folder): self.folder,self.others = folder,{}
    def __call__(self, o):
        name = Path(o if isinstance(o, (str,Path)) else o['name']).name
        return self.others.get(name) or self.folder/name

class Value:
    "A getter of the user's, whose result depends on an attribute"
    def __init__(self): self.by = 1
    def __call__(self, o): return self.by*(1.+int(Path(o if isinstance(o, (str,Path)) else o['name']).name[:2]))

class Darker(Transform):
    "An item transform of the user's, which looks at the whole image"
    order = 0
    def encodes(self, o:PILImage): return PILImage(o.point(lambda v: v//2))

class Late(RandTransform):
    "A random one of the user's, after `Resize`"
    order = 5
    def encodes(self, x:PILImage): return PILImage(x.point(lambda o: 255-o)) if random.random()<.5 else x

item_tfms = dict(
    none=list, crop=lambda: [Resize(16)], squish=lambda: [Resize(16, 'squish')], pad=lambda: [Resize(16, 'pad', pad_mode='border')],
    wide=lambda: [Resize((12,18), 'squish')], random_crop=lambda: [RandomResizedCrop(16, min_scale=.4)], flip=lambda: [Resize(16, 'squish'), FlipItem()],
    own=lambda: [Darker(), Resize(16, 'squish')], late=lambda: [Resize(16, 'squish'), Late(p=.7)])
resized_tfms = 'crop','squish','pad','wide','late' # that begin with a `Resize`

class Spec(NamedTuple):
    "A pipeline"
    items:str='paths' # or 'table'
    target:str='category' # or 'mask', 'regression', 'image'
    tfms:str='wide' # Of `item_tfms`
    bs:int=3
    shuffle:bool=True
    drop_last:bool=True
    workers:int=0

def vocab(order=labels): return CategoryMap(list(order), sort=False)

def elements(spec, folder):
    "Type transforms of the image and of the target"
    is_table = spec.items=='table'
    images = [ColReader('name', pref=f'{folder}/images/')] if is_table else []
    targets = dict(category=[ColReader('label') if is_table else RegexLabeller(r'_(.)\.png$'), Categorize(vocab=list(labels))],
                   regression=[ColReader('value') if is_table else Value(), RegressionSetup()],
                   mask=[Beside(folder/'masks'), PILMask.create], image=[Beside(folder/'others'), PILImage.create])
    return [[*images, PILImage.create], targets[spec.target]]

def make_items(spec, folder):
    files = sorted((folder/'images').iterdir())
    if spec.items=='paths': return files
    names = [o.name for o in files]
    others = names[1:]+names[:1]
    return pd.DataFrame(dict(name=names, other=others, label=[o[3] for o in names], other_label=[o[3] for o in others],
                             value=[float(o[:2]) for o in names]))

def make_dataset(spec, folder): return Datasets(make_items(spec, folder), elements(spec, folder), splits=[range(n_train), range(n_train, n_files)])

def make(spec, folder):
    "Stock's loaders"
    after = dict(after_item=[*item_tfms[spec.tfms](), ToTensor()], after_batch=[IntToFloatTensor()])
    return make_dataset(spec, folder).dataloaders(bs=spec.bs, num_workers=spec.workers, device='cpu', shuffle=spec.shuffle, drop_last=spec.drop_last, **after)

# --- what can be changed, of both sides alike ---

changes = {}
def change(items=None, target=None):
    "Note a function of loaders and their folder as a change, of pipelines with such items and targets"
    def _note(f):
        f.items,f.targets = items,L(target) if target else None
        changes[f.__name__] = f
        return f
    return _note

def fits(name, spec):
    f = changes[name]
    return f.items in (None,spec.items) and (f.targets is None or spec.target in f.targets)

def tls(dls): return dls.train.dataset.tls

class Own:
    "A dataset of the user's"
    split_idx = 0
    def __init__(self, folder): self.files = sorted((folder/'others').iterdir())[:n_train]
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return PILImage.create(self.files[i]),TensorCategory(i%3)

# the dataset

@change('paths', 'category')
def dataset_by_another(dls, folder):
    dls.train.dataset = Datasets(sorted((folder/'others').iterdir())[:n_train], elements(Spec(), folder))

@change()
def dataset_by_a_users_own(dls, folder): dls.train.dataset = Own(folder)

@change()
def dataset_by_the_other_subset(dls, folder): dls.train.dataset = dls.valid.dataset

@change('paths', 'category')
def element_of_labels(dls, folder): tls(dls)[1] = TfmdLists(list(tls(dls)[1].items), [lambda o: 'b', Categorize(vocab=list(labels))])

@change('paths')
def element_of_images(dls, folder): tls(dls)[0] = TfmdLists(list(tls(dls)[0].items)[::-1], [PILImage.create])

@change('paths')
def one_item_in_place(dls, folder):
    for tl in tls(dls): tl.items[1] = sorted((folder/'images').iterdir())[-1]

@change('paths')
def items_turned_in_place(dls, folder): tls(dls)[0].items[:] = list(tls(dls)[0].items)[::-1]

@change('paths')
def other_items(dls, folder):
    for tl in tls(dls): tl.items = L(sorted((folder/'others').iterdir())[:n_train][::-1])

@change('paths')
def fewer_items(dls, folder):
    for tl in tls(dls): tl.items = tl.items[:5]
    dls.train.n = 5

@change('table')
def a_cell_of_names(dls, folder):
    for tl in tls(dls): tl.items.loc[tl.items.index[1], 'name'] = '11_c.png'

@change('table')
def a_column_of_names(dls, folder):
    for tl in tls(dls): tl.items['name'] = tl.items['other'].tolist()

@change('table', 'category')
def a_cell_of_labels(dls, folder):
    for tl in tls(dls): tl.items.loc[tl.items.index[2], 'label'] = 'a'

@change('table', 'category')
def a_column_of_labels(dls, folder):
    for tl in tls(dls): tl.items['label'] = tl.items['other_label'].tolist()

@change('table', 'regression')
def values_in_place(dls, folder):
    for tl in tls(dls): tl.items['value'] *= 2

# type transforms

@change('table')
def prefix_of_a_reader(dls, folder): tls(dls)[0].tfms.fs[0].pref = f'{folder}/others/'

@change('table')
def columns_of_a_reader(dls, folder): tls(dls)[0].tfms.fs[0].cols = L('other')

@change('table', 'category')
def columns_of_a_reader_of_labels(dls, folder): tls(dls)[1].tfms.fs[0].cols = L('other_label')

def wrapped(tfm):
    "The user's object that a `Transform` calls"
    f = first(tfm.encodes.methods).implementation
    return first(o.cell_contents for o in f.__closure__)

@change('paths', 'category')
def pattern_of_a_labeller(dls, folder):
    labeller = wrapped(tls(dls)[1].tfms.fs[0])
    labeller.pat = re.compile('im(a)ges')
    labeller.matcher = labeller.pat.search

@change('paths', 'category')
def a_labeller_in_place(dls, folder): tls(dls)[1].tfms.fs[0] = Transform(lambda o: 'c')

@change('paths')
def a_getter_before_the_opener(dls, folder): tls(dls)[0].tfms.fs.insert(0, Transform(Beside(folder/'others')))

@change()
def another_pipeline(dls, folder): tls(dls)[0].tfms = Pipeline([Beside(folder/'others'), PILImage.create], split_idx=0)

@change()
def a_transform_after_the_opener(dls, folder): tls(dls)[0].tfms.fs.append(Darker())

@change(None, ('mask','image'))
def folder_of_a_users_getter(dls, folder):
    getter = wrapped(tls(dls)[1].tfms.fs[0])
    getter.folder = folder/('other_masks' if getter.folder.name=='masks' else 'images')

@change('paths', 'image')
def another_file_for_one_item(dls, folder): wrapped(tls(dls)[1].tfms.fs[0]).others['03_a.png'] = folder/'images'/'05_c.png'

@change('paths', 'regression')
def number_of_a_users_getter(dls, folder): wrapped(tls(dls)[1].tfms.fs[0]).by += 1

@change(None, 'category')
def another_vocabulary(dls, folder): tls(dls)[1].tfms.fs[1].vocab = vocab('cab')

@change(None, 'category')
def vocabulary_in_place(dls, folder):
    o2i = tls(dls)[1].tfms.fs[1].vocab.o2i
    o2i['a'],o2i['b'] = o2i['b'],o2i['a']

# item transforms

def _set_item_tfms(name):
    def f(dls, folder): dls.train.after_item = Pipeline([*item_tfms[name](), ToTensor()], split_idx=0)
    f.__name__ = f'item_tfms_{name}'
    return f
for o in item_tfms: change()(_set_item_tfms(o))

@change()
def size_of_a_resize(dls, folder):
    for o in dls.train.after_item.fs:
        if isinstance(o, Resize): o.size = (14,10)

@change()
def method_of_a_resize(dls, folder):
    for o in dls.train.after_item.fs:
        if isinstance(o, Resize): o.method = 'crop' if o.method=='squish' else 'squish'

@change()
def a_transform_added(dls, folder): dls.train.after_item.add(Darker())

@change()
def a_transform_in_the_list(dls, folder): dls.train.after_item.fs.insert(0, Darker())

def _resized(item): return tuple(tensor(np.asarray(o.resize((8,8)))) if isinstance(o, Image.Image) else tensor(float(o)) for o in item)

@change()
def item_tfms_a_function(dls, folder): dls.train.after_item = _resized

def _turned(items): return [(x,*y) for x,*y in items[::-1]]

@change()
def before_batch_set(dls, folder): dls.train.before_batch = Pipeline([_turned], split_idx=0)

@change()
def before_batch_added(dls, folder): dls.train.before_batch.add(Transform(_turned))

@change()
def before_batch_a_function(dls, folder): dls.train.before_batch = _turned

class HalfBatch(Transform):
    order = 30
    def encodes(self, o:TensorImage): return o/2

@change()
def after_batch_added(dls, folder): dls.train.after_batch.add(HalfBatch())

# methods and numbers of the loader

@change()
def create_item_set(dls, folder):
    dls.train.create_item = lambda s: tuple(TfmdDL.create_item(dls.train, 0))

@change()
def create_batch_set(dls, folder): dls.train.create_batch = lambda items: TfmdDL.create_batch(dls.train, items[::-1])

@change()
def do_item_set(dls, folder): dls.train.do_item = lambda s: TfmdDL.do_item(dls.train, (s+1)%5)

@change()
def retain_set(dls, folder): dls.train.retain = lambda res, b: (res[0]//2, *res[1:])

@change()
def another_bs(dls, folder): dls.train.bs = 5 if dls.train.bs!=5 else 4

@change()
def drop_last_turned(dls, folder): dls.train.drop_last = not dls.train.drop_last

@change()
def shuffle_turned(dls, folder): dls.train.shuffle = not dls.train.shuffle

@change()
def get_idxs_set(dls, folder): dls.train.get_idxs = lambda: [3,1,4,1,2]

@change()
def new_loader(dls, folder): dls.loaders[0] = dls.train.new(bs=4, shuffle=False)

@change()
def new_loader_of_other_items(dls, folder): dls.loaders[0] = dls.train.new(dls.valid.dataset, drop_last=False)

@change()
def all_new_loaders(dls, folder): dls.loaders = [dl.new(bs=2) for dl in dls.loaders]

@change()
def new_loader_with_item_tfms(dls, folder): dls.loaders[0] = dls.train.new(after_item=Pipeline([Resize(12), ToTensor()], split_idx=0))

# --- what opens images: of all loaders ---

def _create_turned(cls, fn, **kwargs): return cls(load_image(fn, mode='RGB').transpose(Image.Transpose.ROTATE_180))
def _load_dark(fn, mode=None):
    im = Image.open(fn).convert(mode or 'RGB')
    return im.point(lambda o: o//3)

@contextmanager
def opening_kept():
    "What opens images is as it was at the end"
    create,args,load = vars(PILImage).get('create'),PILImage._open_args,fastai.vision.core.load_image
    try: yield
    finally:
        if create is not None: PILImage.create = create
        elif 'create' in vars(PILImage): del PILImage.create
        PILImage._open_args,fastai.vision.core.load_image = args,load

@change()
def create_patched(dls, folder): PILImage.create = classmethod(_create_turned)

@change()
def open_args_replaced(dls, folder): PILImage._open_args = {'mode': 'L'}

@change()
def load_image_patched(dls, folder): fastai.vision.core.load_image = _load_dark

opening = 'create_patched','open_args_replaced','load_image_patched'

# --- running, and comparing ---

def seeded(k):
    random.seed(k); np.random.seed(k); torch.manual_seed(k)

def epoch(dls, seed, only=None, mid=None):
    "Batches of each loader, or the error that one raised; `mid` is called once a batch of the training set was made"
    res = []
    for i,dl in enumerate(dls.loaders):
        if only not in (None,i): continue
        seeded(seed)
        made = []
        try:
            for n,b in enumerate(dl):
                made.append(b)
                if n==0 and i==0 and mid is not None: mid()
        except Exception as e: made.append(e)
        res.append(made)
    return res

def _leaves(b): return [p for o in b for p in _leaves(o)] if isinstance(b, (tuple,list)) else [b]

def difference(a, b, exact=True):
    "What of two values is not alike; '' if all is"
    if isinstance(a, Exception) or isinstance(b, Exception):
        return '' if type(a) is type(b) else f'{a!r:.300} in stock, {b!r:.300} here'
    if type(a) is not type(b): return f'{type(a)} in stock, {type(b)} here'
    if isinstance(a, (tuple,list)):
        if len(a)!=len(b): return f'{len(a)} in stock, {len(b)} here' + ''.join(f': {o!r:.300}' for o in (*a,*b) if isinstance(o, Exception))
        return first(filter(None, (f'{i}: {d}' if (d:=difference(p, q, exact)) else '' for i,(p,q) in enumerate(zip(a, b))))) or ''
    if not isinstance(a, Tensor): return '' if a==b else f'{a} in stock, {b} here'
    if (a.shape,a.dtype)!=(b.shape,b.dtype): return f'{a.shape} {a.dtype} in stock, {b.shape} {b.dtype} here'
    if torch.equal(a.as_subclass(Tensor), b.as_subclass(Tensor)): return ''
    if exact or not isinstance(a, (TensorImage,TensorMask)): return f'other values of {type(a).__name__}'
    if isinstance(a, TensorMask):
        same = (a.as_subclass(Tensor)==b.as_subclass(Tensor)).float().mean()
        return '' if same>.8 else f'{same:.2f} of the mask is alike'
    peak = 255 if a.dtype==torch.uint8 else 1
    db = min(psnr(p, q, peak) for p,q in zip(a, b))
    return '' if db>=33 else f'{db:.0f} dB'
