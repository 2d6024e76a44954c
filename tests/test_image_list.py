"fastai v1's lines on fastai v2: the batches of stock, from memory once they were read, whatever the source, the split and the labels"
import itertools, json, math, pickle, re, shutil

import pandas as pd
import pytest
from fastai.vision.all import *
from fastai.vision.gan import InvisibleTensor
from fastmem.all import *
from helpers import batches, photo, photo_folder, run_forked

n_files = 24

@pytest.fixture(scope='module')
def original(tmp_path_factory):
    "Photos in train/ and valid/ by class, a smaller one and a mask of each, two to test on, and two tables"
    path = tmp_path_factory.mktemp('original')
    files = photo_folder(path/'train', 16, size=(48,40)) + photo_folder(path/'valid', n_files, size=(48,40))[16:]
    for o in path.glob('valid/*/*'):
        if int(o.stem)<16: o.unlink()
    for folder in ('small','masks','test'): (path/folder).mkdir()
    for o in files:
        im = Image.open(o)
        im.resize((8,8)).save(path/'small'/o.name); im.convert('L').point(lambda v: v>100).save(path/'masks'/f'{o.stem}.png')
    for i in range(2): photo(i, (48,40)).save(path/f'test/{i}.jpg')
    table(files, path).to_csv(path/'labels.csv', index=False)
    (path/'valid.txt').write_text('\n'.join(o.name for o in files[16:]))
    return path

def table(files, path):
    return pd.DataFrame(dict(name=[str(o.relative_to(path).with_suffix('')) for o in files], tags=[o.parent.name+(' few' if i%2 else '') for i,o in enumerate(files)],
                             is_valid=['valid' in o.parts for o in files], x=[i/4 for i in range(len(files))], few=[i%2 for i in range(len(files))]))

@pytest.fixture
def path(original, tmp_path):
    "A copy that may be deleted"
    return Path(shutil.copytree(original, tmp_path/'data'))

# --- what there is to write ---

folders = dict(include=['train','valid'])
def from_folder(cls, path, **kwargs): return cls.from_folder(path, **folders, **kwargs)
def from_csv(cls, path, **kwargs): return cls.from_csv(path, 'labels.csv', suffix='.jpg', **kwargs)
def from_df(cls, path, **kwargs): return cls.from_df(pd.read_csv(path/'labels.csv'), path, cols='name', suffix='.jpg', **kwargs)
def from_list(cls, path, **kwargs): return cls(get_image_files(path, folders=['train','valid']), path=path, **kwargs)
sources = dict(folder=from_folder, csv=from_csv, df=from_df, list=from_list,
               grey=partial(from_folder, convert_mode='L'), filtered=lambda *a, **k: from_folder(*a, **k).filter_by_func(lambda o: int(o.stem)%3),
               rand=lambda *a, **k: from_folder(*a, **k).filter_by_rand(.8, seed=1), partial=lambda *a, **k: from_folder(*a, **k).use_partial_data(.8, seed=1),
               by_folder=lambda cls, path, **k: cls.from_folder(path, **k).filter_by_folder(exclude=['small','masks','test']))

splits = dict(none=lambda o: o.split_none(), rand=lambda o: o.split_by_rand_pct(.3, seed=1), subsets=lambda o: o.split_subsets(.5, .3, seed=1),
              folder=lambda o: o.split_by_folder(), idx=lambda o: o.split_by_idx([1,3,5]), idxs=lambda o: o.split_by_idxs(list(range(10)), [15,11]),
              files=lambda o: o.split_by_files([p.name for p in o.items[:7]]), fname_file=lambda o: o.split_by_fname_file('valid.txt'),
              func=lambda o: o.split_by_valid_func(lambda p: int(p.stem)%4==0), df=lambda o: o.split_from_df('is_valid'))

def mask_of(o): return o.parents[2]/'masks'/f'{o.stem}.png'
def small_of(o): return o.parents[2]/'small'/o.name
labels = dict(folder=lambda o: o.label_from_folder(), func=lambda o: o.label_from_func(lambda p: int(p.stem)%2), re=lambda o: o.label_from_re(r'(\d)\.jpg$', classes=list('0123456789')),
              df=lambda o: o.label_from_df('few'), tags=lambda o: o.label_from_df(1, label_delim=' '), one_hot=lambda o: o.label_from_df(['is_valid','few']),
              float=lambda o: o.label_from_df('x'), floats=lambda o: o.label_from_df(['x','few'], label_cls=FloatList), int_floats=lambda o: o.label_from_df('few', label_cls=FloatList),
              const=lambda o: o.label_const('a'), empty=lambda o: o.label_empty(), image=lambda o: o.label_from_func(small_of, label_cls=ImageList),
              same=lambda o: o.label_from_func(noop, label_cls=MemoryImageList), grey=lambda o: o.label_from_func(small_of, label_cls=ImageList, convert_mode='L'),
              mask=lambda o: o.label_from_func(mask_of, label_cls=SegmentationLabelList, classes=['dark','light']))

# --- what comes of it, said without an ImageList ---

listed = dict(csv=lambda files: sorted(files, key=lambda o: o.stem), df=lambda files: sorted(files, key=lambda o: o.stem), filtered=lambda files: [o for o in files if int(o.stem)%3],
              rand=lambda files: [o for o,p in zip(files, np.random.default_rng(1).random(n_files)) if p<.8],
              partial=lambda files: [files[i] for i in sorted(np.random.default_rng(1).permutation(n_files)[:19])])

@pytest.mark.parametrize('source', sources)
def test_which_images_are_listed(original, source):
    files = get_image_files(original, folders=['train','valid'])
    assert len(files)==n_files and sources[source](ImageList, original).items==list(listed.get(source, noop)(files))

def parts(valid): return [i for i in range(n_files) if i not in valid],list(valid)
split_into = dict(none=lambda: parts([]), rand=lambda: RandomSplitter(.3, seed=1)(range(n_files)), subsets=lambda: RandomSubsetSplitter(.5, .3, seed=1)(range(n_files)),
                  folder=lambda: parts(range(16, 24)), idx=lambda: parts([1,3,5]), idxs=lambda: (range(10),[15,11]), files=lambda: parts(range(7)),
                  fname_file=lambda: parts(range(16, 24)), func=lambda: parts(range(0, 24, 4)), df=lambda: parts(range(16, 24)))

@pytest.mark.parametrize('split', splits)
def test_which_images_are_in_each_part(original, split):
    lists = splits[split](from_df(ImageList, original))
    assert [[int(o.stem) for o in part.items] for part in (lists.train,lists.valid)]==list(map(list, split_into[split]()))

classes_of = list('abc'*8)
labelled_as = dict(folder=lambda i: classes_of[i], func=lambda i: i%2, re=lambda i: str(i%10), df=lambda i: i%2, tags=lambda i: [classes_of[i],'few'] if i%2 else [classes_of[i]],
                   one_hot=lambda i: [n for n,b in dict(is_valid=i>=16, few=i%2).items() if b], float=lambda i: i/4, floats=lambda i: [i/4,i%2], int_floats=lambda i: i%2,
                   const=lambda i: 'a', empty=None, image=lambda i: f'small/{i:03}.jpg', same=lambda i: f'{"train" if i<16 else "valid"}/{classes_of[i]}/{i:03}.jpg',
                   grey=lambda i: f'small/{i:03}.jpg', mask=lambda i: f'masks/{i:03}.png')

def label_made(tl, i):
    "What fastai makes of the label of item `i`, back from numbers; of a path, pixels"
    y = tl[i]
    if isinstance(y, TensorMultiCategory): return [tl.vocab[j] for j in y.nonzero().flatten()]
    if isinstance(y, TensorCategory): return tl.vocab[int(y)]
    return y.tolist() if isinstance(y, Tensor) else np.asarray(y)

@pytest.mark.parametrize('label', labels)
def test_which_labels_there_are(original, label):
    labelled = labels[label](from_df(ImageList, original).split_none())
    dsets,want = labelled.datablock().datasets(labelled.items),labelled_as[label]
    if want is None: return test_eq(len(dsets.tls), 1)
    for i in range(n_files):
        y,path = label_made(dsets.tls[1], i),original/str(want(i))
        test_eq(y, np.asarray(Image.open(path).convert('L' if y.ndim==2 else 'RGB')) if path.is_file() else want(i))

def make(labelled, num_workers=0, size=32, **kwargs):
    set_seed(0)
    return labelled.transform(size=size).databunch(bs=4, num_workers=num_workers, device='cpu', **kwargs)

def same_batches(a, b):
    assert len(a)==len(b)>0
    for x,y in zip(a, b): assert len(x)==len(y) and all(type(p) is type(q) and torch.equal(p, q) for p,q in zip(x, y))

def check_warm(make_labelled, path, num_workers):
    "All three lists give the batches of stock; the two that keep images need the folder for one pass, or to load, and no longer"
    stock = make(make_labelled(ImageList), num_workers)
    assert type(stock.train) is TfmdDL
    want = [L(o).concat() for o in batches(stock, 2)]
    lazy = make(make_labelled(MemoryImageList, store='decoded'), num_workers)
    lists = make_labelled(ImageListInMemory).load_data()
    loaded = make(lists, num_workers)
    set_seed(0); make(make_labelled(ImageList), num_workers)  # the random numbers that making them took
    got = [L(batches(lazy)[0]).concat()]
    shutil.rmtree(path)
    got += [L(batches(lazy)[0]).concat()]
    for a,b in zip(want, got): same_batches(a, b)
    assert lists.loaded
    set_seed(0); again = L(batches(loaded)[0]).concat()
    assert len(again)==len(want[0]) and loaded.memory.misses==0 and loaded.memory.store=='decoded'

tables = ['df','csv']
lines = [(source if label in ('folder','func','re','const','empty') else tables[i%2], split if split!='df' else 'rand', label)
         for i,(label,split,source) in enumerate(zip(labels, itertools.cycle(splits), itertools.cycle(sources)))]
lines += [('csv','df','folder')] + [(o,'rand','folder') for o in sources if o not in [line[0] for line in lines]]

def test_every_source_split_and_label_is_tried():
    assert [set(o) for o in zip(*lines)]==[set(sources), set(splits), set(labels)]

@pytest.mark.parametrize('num_workers', [0,2])
@pytest.mark.parametrize('line', lines, ids='-'.join)
def test_lines(path, line, num_workers):
    source,split,label = line
    check_warm(lambda cls, **kwargs: labels[label](splits[split](sources[source](cls, path, **kwargs))), path, num_workers)

# --- as pasted ---

@pytest.mark.parametrize('num_workers', [0,2])
def test_the_lines_of_the_forum(path, num_workers):
    path = path/'valid'  # in folders by class
    data = (MemoryImageList.from_folder(path).split_by_rand_pct(.2, seed=1).label_from_folder().transform(size=32)
            .databunch(bs=4, num_workers=num_workers).normalize(imagenet_stats))
    with pytest.warns(UserWarning, match='renamed'): learn = cnn_learner(data, models.resnet18, metrics=accuracy, pretrained=False)
    batches(data); shutil.rmtree(path)
    with learn.no_logging(), learn.no_bar(): learn.fit(1)
    assert data.memory.misses==8 and math.isfinite(learn.recorder.values[0][0])

stages = dict(list=lambda il: il, split=lambda il: il.split_by_folder(), labelled=lambda il: il.split_by_folder().label_from_folder())

@pytest.mark.parametrize('loaded_by', stages)
@pytest.mark.parametrize('num_workers', [0,2])
def test_load_and_purge_on_command(path, loaded_by, num_workers):
    "Whichever of them is told, before and after the databunch; nothing is kept that was not asked for"
    il = ImageListInMemory.from_folder(path, **folders)
    every = [f(il) for f in stages.values()]
    o,labelled = every[list(stages).index(loaded_by)],every[2]
    data = make(labelled, num_workers, size=16)
    batches(data)
    assert data.memory.n_cached==0 and not any(o.loaded for o in every) and o.purge()==0

    assert o.load_data() is o and all(o.loaded for o in every)
    data = make(labelled, num_workers, size=16)
    n_read = data.memory.misses
    batches(data)
    assert data.memory.n_cached==n_files and data.memory.misses==n_read

    n_bytes = data.memory.cached_bytes
    assert o.purge()>=n_bytes>0 and data.memory.n_cached==0 and not any(o.loaded for o in every)
    batches(data)
    assert data.memory.n_cached==0 and o.purge()==0
    o.load_data()
    shutil.rmtree(path)
    assert len(batches(data)[0][1])==2 and data.memory.misses>n_read

@pytest.mark.parametrize('loaded_by', stages)
def test_what_is_loaded_is_what_the_batches_read(path, loaded_by):
    "The databunch comes first; a list that has no transform loads what the last batches need"
    il = ImageListInMemory.from_folder(path, **folders)
    every = [f(il) for f in stages.values()]
    data = make(every[2], size=16)
    every[list(stages).index(loaded_by)].load_data()
    n_read = data.memory.misses
    batches(data)
    assert data.memory.misses==n_read and data.train.cache.n_bytes()[0]==n_files and all(o.loaded for o in every)
    assert not il.load_data().purge()<data.memory.cached_bytes and not any(o.loaded for o in every)

@pytest.mark.parametrize('kind', [MemoryImageList, ImageListInMemory])
def test_loaded_is_about_the_transform_of_a_list(path, kind):
    labelled = kind.from_folder(path, **folders).split_by_folder().label_from_folder()
    small,large = labelled.transform(size=16).load_data(),labelled.transform(size=24)
    assert small.loaded and labelled.loaded and not large.loaded and labelled.transform(size=16).loaded
    assert make(large, size=24).memory.n_cached==0
    assert small.loaded and large.load_data().loaded and make(large, size=24).memory.n_cached==n_files
    whole = kind.from_folder(path, **folders).load_data().split_by_folder().label_from_folder()
    assert whole.transform(size=16).loaded and whole.transform(size=24).loaded

def test_a_test_set_is_loaded_too(path):
    labelled = ImageListInMemory.from_folder(path, **folders).split_by_folder().label_from_folder()
    assert labelled.load_data().loaded and not labelled.add_test_folder().loaded and labelled.add_test_folder().load_data().loaded

def test_nothing_is_kept_that_was_not_asked_for(path):
    lists = ImageListInMemory.from_folder(path, **folders).split_by_folder()
    data = make(lists.label_from_folder(), size=16)
    lists.train.load_data(); batches(data)
    assert data.memory.n_cached==16 and lists.train.loaded and not lists.valid.loaded and not lists.loaded
    assert data.purge() and not lists.train.loaded
    batches(data)
    assert data.memory.n_cached==0

def test_what_was_loaded_whole_is_forgotten_with_the_images(path):
    il = ImageListInMemory.from_folder(path, **folders).load_data()
    labelled = il.split_by_folder().label_from_folder()
    data = make(labelled, size=16)
    assert data.memory.store=='decoded' and data.purge() and not il.loaded
    assert make(labelled, size=16).memory.store=='resized'

def test_a_given_cache_is_not_paused(path):
    cache = ImageCache()
    on_command,lazy = [make(o.from_folder(path, cache=cache, **folders).split_by_folder().label_from_folder()) for o in (ImageListInMemory,MemoryImageList)]
    batches(on_command); assert cache.n_bytes()[0]==0
    batches(lazy); on_command.purge(); batches(lazy)
    assert lazy.memory.n_cached==n_files

def test_a_list_that_was_loaded_gives_its_images_and_parts(path):
    il = ImageListInMemory.from_folder(path, **folders).load_data()
    want = [np.asarray(ImageList(il.items).get(i)) for i in range(3)]
    shutil.rmtree(path)
    assert all((np.asarray(il[i])==a).all() for i,a in enumerate(want))
    assert il[3:5].loaded and il.split_by_folder().train.loaded and il[1:][0].size==want[1].shape[1::-1]

def test_size_is_kept_from_the_list_to_the_batches(path):
    il = ImageListInMemory.from_folder(path, size=20, **folders).load_data()
    data = make(il.split_by_folder().label_from_folder(), size=16)
    shutil.rmtree(path)
    assert min(il[0].size)==20 and len(batches(data)[0][0])==4 and data.memory.store=='resized'

def test_loading_after_transform_is_resized(path):
    labelled = ImageListInMemory.from_folder(path, **folders).split_by_folder().label_from_func(small_of, label_cls=ImageList).transform(size=16).load_data()
    data = labelled.databunch(bs=4, num_workers=0, device='cpu')
    assert labelled.loaded and data.memory.store=='resized' and data.memory.n_cached==2*n_files
    shutil.rmtree(path)
    assert batches(data)[0][0][0][1].shape==(4,3,16,16)

def test_targets_are_needed_to_be_loaded(path):
    il = ImageListInMemory.from_folder(path, **folders).load_data()
    labelled = il.split_by_folder().label_from_func(mask_of, label_cls=SegmentationLabelList)
    assert il.loaded and not labelled.loaded and labelled.load_data().loaded

# --- options ---

def test_options_of_in_memory(path):
    guard = MemoryGuard(limit_bytes=20_000); cache = ImageCache()
    def data(cls=MemoryImageList, **kwargs): return make(cls.from_folder(path, **folders, **kwargs).split_by_folder().label_from_folder())
    assert data(mode='preload').memory.n_cached==n_files
    assert data(cache=cache).train.cache is cache and data(cache=cache, cls=ImageListInMemory).train.cache is cache
    assert data(guard=guard).train.cache.guard is guard
    assert data(size=40).train.columns[0].recipe.method=='short'
    streamed = data(cls=ImageList, on_error='skip')
    assert streamed.memory.mode=='stream' and streamed.train.options.on_error=='skip'
    with pytest.raises(MemoryError): data(guard=guard, on_full='raise')
    with pytest.raises(TypeError, match='sotre'): data(sotre='decoded')
    with pytest.raises(ValueError, match='store='): data(store='decodet')
    with pytest.raises(ValueError, match='give `guard` to the `ImageCache`'): data(guard=guard, cache=cache)

def test_several_lists_share_a_given_cache(path):
    cache = ImageCache()
    a,b = [ImageListInMemory.from_folder(path, cache=cache, **folders) for _ in range(2)]
    a.load_data()
    assert a.loaded and b.loaded and b.split_none().loaded

# --- targets, test sets, learners ---

@pytest.mark.parametrize('num_workers', [0,2])
def test_noise_to_image(path, num_workers):
    il = GANItemList.from_folder(path, noise_sz=7, **folders)
    data = make(il.split_none().label_from_func(noop), num_workers).normalize(([.5]*3, [.5]*3))
    batches(data); shutil.rmtree(path)
    (x,y),(x1,_) = data.one_batch(),data.one_batch()
    assert type(x) is InvisibleTensor and x.shape==(4,7) and not torch.equal(x, x1)
    assert y.shape==(4,3,32,32) and y.min()<0 and data.memory.n_cached==n_files

@pytest.mark.parametrize('num_workers', [0,2])
def test_a_test_set(path, num_workers):
    labelled = MemoryImageList.from_folder(path, **folders).split_by_folder().label_from_folder()
    for data in (make(labelled.add_test_folder(), num_workers), make(labelled.add_test(get_image_files(path/'test')), num_workers)):
        assert len(data.test_ds)==2 and len(data.loaders)==3
        b, = data[2].one_batch()
        assert b.shape==(2,3,32,32)
    batches(data); shutil.rmtree(path)
    assert len(batches(data)[0])==3 and data.memory.n_cached==n_files+2
    with pytest.raises(FileNotFoundError, match='no folder'): labelled.add_test_folder('tset')

program = """
import sys
class NoFastmem:
    def find_spec(self, name, *args):
        if name.partition('.')[0]=='fastmem': raise ImportError('fastmem is not here')
sys.meta_path.insert(0, NoFastmem())
from fastai.vision.all import *
for o in sys.argv[2:]:
    learn = load_learner(o)
    with learn.no_bar(): print(learn.get_preds(dl=learn.dls.test_dl([sys.argv[1]]))[0].tolist())
"""

def test_learners_are_exported_without_fastmem(path, tmp_path):
    want = []
    for label in ('re','tags'):
        labelled = labels[label](from_df(MemoryImageList, path, store='decoded').split_by_idx([3,4])).add_test_folder()
        data = make(labelled).normalize(imagenet_stats)
        learn = Learner(data, nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), loss_func=noop)
        file = data.train_ds.items[0]
        with learn.no_bar(): want.append(learn.get_preds(dl=data.test_dl([file]))[0].tolist())
        learn.export(tmp_path/f'{label}.pkl')
    res = run_forked(tmp_path, program, file, tmp_path/'re.pkl', tmp_path/'tags.pkl')
    assert np.allclose([json.loads(o) for o in res.splitlines() if o.startswith('[[')], want, atol=1e-5)

def test_a_learner_with_nothing_to_validate_on(path):
    data = make(from_folder(MemoryImageList, path).split_none().label_from_folder())
    learn = Learner(data, nn.Sequential(nn.Conv2d(3, 3, 32), nn.Flatten()), metrics=accuracy)
    with learn.no_logging(), learn.no_bar(): learn.fit(1)
    assert len(data.valid_ds)==0 and data.memory.n_cached==n_files

def test_the_datablock_is_an_ordinary_one(path):
    labelled = from_folder(MemoryImageList, path).split_by_folder().label_from_folder().transform(aug_transforms(), size=32)
    block = labelled.datablock()
    assert type(block) is DataBlock
    stock = block.dataloaders(labelled.items, bs=4, num_workers=0, device='cpu')
    assert type(stock.train) is TfmdDL and (len(stock.train_ds),len(stock.valid_ds))==(16,8)
    assert [type(o) for o in stock.after_batch.fs]==[type(o) for o in labelled.databunch(num_workers=0, bs=4).after_batch.fs]

def test_normalize_is_not_done_twice(path):
    data = make(from_folder(MemoryImageList, path).split_by_folder().label_from_folder()).normalize(([.2]*3, [.2]*3))
    assert data.normalize(imagenet_stats) is data
    for dl in data.loaders:
        tfm, = [o for o in dl.after_batch.fs if isinstance(o, Normalize)]
        assert torch.allclose(tfm.mean.flatten(), tensor(imagenet_stats[0]))
    x = data.normalize().train.new(shuffle=False, bs=16).one_batch()[0]
    assert x.mean().abs()<.5

# --- errors ---

def test_clear_errors(path):
    il = from_df(MemoryImageList, path); lists = il.split_by_folder()
    def fails(error, match, f, *args, **kwargs):
        with pytest.raises(error, match=re.escape(match)): f(*args, **kwargs)
    fails(FileNotFoundError, f'no folder {path/"nowhere"}', ImageList.from_folder, path/'nowhere')
    fails(FileNotFoundError, 'nowhere.csv', ImageList.from_csv, path, 'nowhere.csv')
    (path/'empty').mkdir()
    fails(ValueError, f'no images in {path/"empty"}', ImageList.from_folder, path/'empty')
    fails(ValueError, 'in its folders cats', ImageList.from_folder, path, include='cats')
    fails(ValueError, 'the list of paths is empty', ImageList, [])
    fails(ValueError, "convert_mode='CMYK'", ImageList, il.items, convert_mode='CMYK')
    fails(ValueError, 'none of 24 images is left', il.filter_by_rand, 0.)
    fails(ValueError, "no column 'nme'", ImageList.from_df, il.inner_df, path, cols='nme')
    fails(ValueError, 'row 0 of the table has nothing in column', ImageList.from_df, pd.DataFrame(dict(a=[None,'b'])), path)
    fails(ValueError, f'{il.items[2]} (number 2) is both in', il.split_by_idxs, [0,1,2], [2,3])
    fails(ValueError, 'no image is left to train on', il.split_by_idx, range(24))
    fails(IndexError, 'no image 24', il.split_by_idx, [24])
    fails(ValueError, 'no image has one of these names', il.split_by_files, ['x.jpg'])
    fails(ValueError, "no images in the folder 'val'", il.split_by_folder, valid='val')
    fails(ValueError, 'give the list its `path`', ImageList(il.items).split_by_folder)
    fails(ValueError, "no column 'tag' in the table", lists.label_from_df, 'tag')
    fails(ValueError, 'this list has no table', from_folder(ImageList, path).split_none().label_from_df)
    fails(ValueError, f'{lists.images.items[5]} has no label', lists.label_from_func, lambda o: None if o==lists.images.items[5] else 1)
    fails(AssertionError, str(lists.images.items[0]), lists.label_from_re, 'x(y)z')
    fails(TypeError, 'say with `label_cls`', lists.label_from_func, mask_of)
    fails(AttributeError, 'has no `databunch`', getattr, lists, 'databunch')
    fails(AttributeError, 'has no `label_from_folder`', getattr, il, 'label_from_folder')

mixed = lambda o: int(o.stem) if int(o.stem)%2 else o.stem
named_errors = dict(  # what is written on a list or its split, and what the error names
    subsets_overlap=(ValueError, 'train_size=0.9 and valid_size=0.3', lambda il: il.split_subsets(.9, .3)),
    short_mask=(ValueError, 'a mask of 2 for a list of 24', lambda il: il.split_by_idxs([True,False], [False,True])),
    delim_of_columns=(ValueError, "label_delim=' '", lambda il: il.split_none().label_from_df(['tags','few'], label_delim=' ')),
    text_columns=(ValueError, "000.jpg has ['a', 0.0]", lambda il: il.split_none().label_from_df(['tags','x'])),
    float_of_text=(ValueError, "000.jpg has 'a'", lambda il: il.split_none().label_from_df('tags', label_cls=FloatList)),
    lacking_class=(ValueError, "001.jpg has 'b', which is not among classes=['a']", lambda il: il.split_none().label_from_folder(classes=['a'])),
    lacking_tag=(ValueError, "001.jpg has 'few', which is not among", lambda il: il.split_none().label_from_df('tags', label_delim=' ', classes=list('abc'))),
    no_group=(ValueError, "pat='jpg$'", lambda il: il.split_none().label_from_re('jpg$')),
    mixed=(ValueError, "'000' of", lambda il: il.split_none().label_from_func(mixed)),
    no_label_class=(TypeError, 'label_cls=<class \'fastai.vision.core.PILImage\'>', lambda il: il.split_none().label_from_func(noop, label_cls=PILImage)),
    unknown=(AttributeError, "'ImageList' object has no attribute 'clases'", lambda il: il.clases),
    before_labels=(AttributeError, 'ImageList has no `y`, which LabelLists has', lambda il: il.split_none().label_from_folder().train.y),
    after_batches=(AttributeError, 'LabelLists has no `normalize`, which DataLoaders has', lambda il: il.split_none().label_from_folder().normalize(imagenet_stats)),
    bs_as_path=(TypeError, 'bs=64', lambda il: il.split_none().label_from_folder().databunch(64)),
    dl_tfms=(TypeError, 'write `.transform(batch_tfms=…)`', lambda il: il.split_none().label_from_folder().databunch(dl_tfms=[])),
    tfm_y=(TypeError, 'tfm_y=False', lambda il: il.split_none().label_from_func(noop, label_cls=ImageList).transform(size=8, tfm_y=False)),
    resize_method=(TypeError, 'resize_method=2', lambda il: il.split_none().label_from_folder().transform(size=8, resize_method=2)))

@pytest.mark.parametrize('error,match,f', named_errors.values(), ids=named_errors)
def test_errors_name_the_thing_and_its_value(original, error, match, f):
    with pytest.raises(error, match=re.escape(match)): f(from_df(ImageList, original))

def test_names_that_no_image_has_are_told(path):
    il = from_df(ImageList, path)
    with pytest.warns(UserWarning, match=r"1 of 2 names .*nope.png"): assert len(il.split_by_files(['000.jpg','nope.png']).valid)==1
    (path/'spaces.txt').write_text('000.jpg \n\n001.jpg\r\n')
    assert len(il.split_by_fname_file('spaces.txt').valid)==2
    assert len(il.split_by_idxs([True,*[False]*23], [*[False]*23,True]).valid)==1

def test_arguments_and_attributes_of_v1(path):
    lists = from_folder(ImageList, path).split_by_folder()
    labelled = lists.label_from_re(r'/([abc])/', full_path=True)
    assert labelled.classes==list('abc') and labelled.c==3 and list(labelled.y)==list(map(parent_label, lists.train.items)) and labelled.x.items==lists.train.items
    assert lists.label_from_func(lambda o: .5).classes is None and lists.label_empty().c is None
    assert lists.label_from_func(mask_of, label_cls=SegmentationLabelList, classes=['dark','light']).classes==['dark','light']
    assert from_df(ImageList, path).split_none().label_from_df('tags', label_delim=' ').c==4
    data = labelled.add_test(get_image_files(path/'test'), label='a').transform([], size=16, tfm_y=True).databunch(path/'models', bs=4, num_workers=0, device='cpu')
    assert data.path==path/'models' and data.train.bs==4 and len(data.loaders)==3 and data.vocab==labelled.classes
    assert len(labelled.add_test_folder('test', label='a').test)==2

@pytest.mark.parametrize('label_cls', [CategoryList, MultiCategoryList])
def test_classes_keep_their_order(path, label_cls):
    lists,label = from_folder(ImageList, path).split_none(),parent_label if label_cls is CategoryList else (lambda o: [parent_label(o)])
    labelled = lists.label_from_func(label, label_cls, classes=['b','a','c'])
    assert list(make(labelled).vocab)==labelled.classes==['b','a','c']

def test_pixels_in_a_folder(path, tmp_path):
    "`path` is where the images are; that of the pixel files is said by a cache"
    def data(): return make(MemoryImageList.from_folder(path, cache=ImageCache(path=tmp_path/'pixels'), **folders).split_by_folder().label_from_folder())
    batches(data())
    again = data()
    assert again.memory.path==str(tmp_path/'pixels') and again.memory.n_cached==n_files and batches(again) and again.memory.misses==0

def test_a_missing_value_of_a_table_is_an_item_without_a_label(path):
    df = pd.read_csv(path/'labels.csv'); df.loc[3,'tags'] = None; df.loc[4,'x'] = math.nan
    lists = MemoryImageList.from_df(df, path, suffix='.jpg').split_none()
    for cols in ('tags','x',['x','few']):
        with pytest.raises(ValueError, match=f'{3 if cols=="tags" else 4:03}.jpg has no label$'): lists.label_from_df(cols)
    with pytest.raises(ValueError, match='003.jpg has no label'): lists.label_from_df('tags', label_delim=' ')

def test_a_file_with_two_labels(path):
    df = pd.read_csv(path/'labels.csv')
    twice = MemoryImageList.from_df(pd.concat([df,df]), path, suffix='.jpg').split_none()
    assert len(make(twice.label_from_df('x')).train_ds)==48 and make(twice.label_from_df('x')).memory.n_items==24
    other = MemoryImageList.from_df(pd.concat([df,df.assign(x=9)]), path, suffix='.jpg').split_none()
    with pytest.raises(ValueError, match='more than once, with different labels'): other.label_from_df('x')

def test_fewer_images_than_a_batch(path):
    with pytest.warns(UserWarning, match='16 images are fewer than bs=64'): from_folder(ImageList, path).split_by_folder().label_from_folder().databunch(num_workers=0)

# --- looking at a list ---

def test_sizes_come_from_headers(path):
    "A file cut off after its header can't be decoded, and is shown all the same"
    il = ImageList.from_folder(path, include='test')
    for o in il.items: o.write_bytes(o.read_bytes()[:700])
    assert '48×40' in repr(il) and '(2 items)' in repr(il)
    il.items[0].write_bytes(b'no image')
    assert '(unreadable)' in repr(il)
    with pytest.raises(OSError): il[1]

def test_len_index_and_slice(path):
    il = from_csv(MemoryImageList, path)
    assert len(il)==24 and il[2:4].items==il.items[2:4] and il[[0,-1]].items==[il.items[0],il.items[-1]] and len(il[:0])==0
    assert il[np.arange(24)%2==0].inner_df['few'].sum()==0
    assert il[-1].size==il.get(23).size==Image.open(il.items[23]).size
    assert from_folder(MemoryImageList, path, convert_mode='L')[0].mode=='L'
    assert len(list(il[:3]))==3
    il.show(max_n=4); il[:1].show()

# --- what the second stranger's review found ---

def test_lists_of_paths_of_any_kind(path):
    files = get_image_files(path/'train')
    for o in (list(files), np.array(files), np.array([str(p) for p in files]), pd.Series(files), pd.Index([str(p) for p in files]), iter(files), MemoryImageList(files)):
        assert MemoryImageList(o, path=path).items==list(files)

@pytest.mark.parametrize('given', [lambda files: MemoryImageList(files), lambda files: np.array(files), list])
def test_images_to_test_on_are_kept_whatever_lists_them(path, given):
    labelled = from_folder(MemoryImageList, path).split_by_folder().label_from_folder().add_test(given(get_image_files(path/'test')))
    data = make(labelled)
    batches(data)
    assert data.memory.n_items==data.memory.n_cached==n_files+2 and labelled.transform(size=32).loaded

@pytest.mark.parametrize('truth', [lambda o: int(o), lambda o: re.search('t', str(o)), lambda o: np.int64(o), lambda o: 'yes' if o else ''])
def test_a_split_asks_whether_the_function_is_true(path, truth):
    il = from_folder(MemoryImageList, path)
    split = il.split_by_valid_func(lambda o: truth('valid' in o.parts))
    assert sorted(split.valid.items)==sorted(o for o in il.items if truth('valid' in o.parts)) and len(split.train)+len(split.valid)==n_files

@pytest.mark.parametrize('dtype', ['Int64','string','boolean','category',object])
@pytest.mark.parametrize('delim', [None,' '])
def test_a_missing_label_of_any_kind_of_column_is_named(path, dtype, delim):
    df = table(get_image_files(path, folders=['train','valid']), path)
    df['few'] = df.few.astype(bool if dtype=='boolean' else str if dtype=='string' else int).astype(dtype)
    df.loc[3,'few'] = None
    with pytest.raises(ValueError, match=f'{df.name[3]}.* has no label'):
        MemoryImageList.from_df(df, path, cols='name', suffix='.jpg').split_by_idx([0]).label_from_df('few', label_delim=delim)

def test_a_cell_may_hold_an_array(path):
    df = table(get_image_files(path, folders=['train','valid']), path)
    df['x'] = [np.array([i,i+1.]) for i in range(len(df))]
    def label(df): return MemoryImageList.from_df(df, path, cols='name', suffix='.jpg').split_by_idx([0]).label_from_df('x', label_cls=FloatList)
    assert make(label(pd.concat([df,df]))).one_batch()[1].shape==(4,2)
    twice = pd.concat([df,df.assign(x=df.x*2)])
    with pytest.raises(ValueError, match='more than once'): label(twice)

def test_a_cell_that_is_run_again_finds_its_images(path):
    def cell(size=32): return make(from_folder(MemoryImageList, path, mode='preload').split_by_rand_pct(.2, seed=1).label_from_folder(), size=size)
    data = cell()
    for _ in range(2):
        data = cell()
        assert data.memory.n_cached==n_files and len({id(o) for o in shared_guard().caches})==1
    assert make(from_folder(ImageListInMemory, path).split_none().label_from_folder()).memory.n_cached==0, 'which reads on command alone'
    assert cell(24).train.cache is not data.train.cache

# --- what v1 did: a pair of transforms ---

class Mark(Transform):
    "Notes in red how often it ran, where it runs: +10 for each"
    def __init__(self, n=10): self.n = n; super().__init__()
    def encodes(self, x:PILImage):
        a = np.array(x); a[...,0] += self.n
        return PILImage(Image.fromarray(a))

class BatchMark(Transform):
    order = 20
    def encodes(self, x:TensorImage): return x+1

def add_30(x):
    if not isinstance(x, PILImage): return x
    a = np.array(x); a[...,0] += 30
    return PILImage(Image.fromarray(a))

@pytest.fixture(scope='module')
def black(tmp_path_factory):
    "Eight black images and two to test on"
    path = tmp_path_factory.mktemp('black')
    for i in range(10):
        file = path/('test' if i>7 else 'ab'[i%2])/f'{i}.png'
        file.parent.mkdir(exist_ok=True)
        Image.new('RGB', (20,20)).save(file)
    return path

def black_lists(path, cls=MemoryImageList): return cls.from_folder(path, include=['a','b']).split_by_idx([0,1,2]).label_from_folder().add_test_folder()

pairs = dict(  # what is given; red of the images to train, validate and test on, and what was added to their batches
    both=(dict(item_tfms=([Mark()],[Mark(20)])), (10,20,20), (0,0,0)),
    train=(dict(item_tfms=([Mark(),Mark(5)],[])), (15,0,0), (0,0,0)),
    valid=(dict(item_tfms=(None,[Mark()])), (0,10,10), (0,0,0)),
    neither=(dict(item_tfms=(None,None)), (0,0,0), (0,0,0)),
    lists=(dict(item_tfms=[[Mark()],L(Mark(20))]), (10,20,20), (0,0,0)),
    same=(dict(item_tfms=([mark:=Mark()],[mark])), (10,10,10), (0,0,0)),
    functions=(dict(item_tfms=([add_30,Mark()],[Mark])), (40,10,10), (0,0,0)),
    batches=(dict(batch_tfms=([BatchMark(),BatchMark()],[BatchMark()])), (0,0,0), (2,1,1)),
    all=(dict(item_tfms=([Mark()],[]), batch_tfms=([BatchMark()],[])), (10,0,0), (1,0,0)),
    no_pair=(dict(item_tfms=[Mark()], batch_tfms=BatchMark()), (10,10,10), (1,1,1)))

@pytest.mark.parametrize('cls', [ImageList,MemoryImageList])
@pytest.mark.parametrize('given,red,added', pairs.values(), ids=pairs)
def test_a_pair_of_transforms_is_one_for_each_part(black, cls, given, red, added):
    data = black_lists(black, cls).transform(**given).databunch(bs=4, num_workers=0, device='cpu')
    for _ in range(2):
        got = [float(dl.one_batch()[0][0].max()) for dl in data.loaders]
        assert np.allclose(got, [r/255+a for r,a in zip(red,added)], atol=1e-3)
    assert np.isclose(float(data.test_dl(get_image_files(black/'test')).one_batch()[0].max()), red[2]/255+added[2], atol=1e-3)

def test_the_pair_is_left_as_it_was(black):
    given = [FlipItem(1.)],[FlipItem(1.)]
    black_lists(black).transform(given)
    assert [o.split_idx for o, in given]==[0,0]

stock_pairs = dict(resize=(([Resize(24)],[Resize(16)]), None), random=(([RandomResizedCrop(16)],[Resize(16)]), None),
                   crop=(([FlipItem(1.),CropPad(24)],[CropPad(16)]), None), batch=((aug_transforms(),[]), 32), sized=(([FlipItem()],[FlipItem(1.)]), 32))

@pytest.mark.parametrize('pair,size,num_workers', [*[(*o,0) for o in stock_pairs.values()],(*stock_pairs['random'],2)], ids=[*stock_pairs,'workers'])
def test_a_pair_gives_the_batches_of_stock(path, pair, size, num_workers):
    def epochs(il):
        set_seed(0)
        labelled = il.split_by_folder().label_from_folder().transform(pair, size=size)
        return batches(labelled.databunch(bs=4, num_workers=num_workers, device='cpu'), 2)
    for a,b in zip(epochs(from_folder(ImageList, path)), epochs(from_folder(MemoryImageList, path, store='decoded'))): same_batches(L(a).concat(), L(b).concat())

@pytest.mark.parametrize('tfms', [([],[],[]), ([FlipItem()],FlipItem()), [[FlipItem()]]], ids=['three','half','nested'])
def test_what_is_no_pair_is_refused(black, tfms):
    for name in ('item_tfms','batch_tfms'):
        with pytest.raises(TypeError, match='a list of transforms, or a pair'): black_lists(black).transform(**{name:tfms})

# --- a list's own `open` and `get` ---

def inverted(im): return PILImage(Image.fromarray(255-np.array(im)))

class ForumList(ImageList):
    "As it was pasted in the forum, with v2's image class"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._map = {}
    def open(self, i):
        item = self._map.get(str(i))
        if isinstance(item, Image.Image): return item
        item = super().open(i)
        self._map[str(i)] = item
        return item

class OpenList(MemoryImageList):
    def open(self, fn): return inverted(super().open(fn))

class GetList(MemoryImageList):
    def get(self, i): return inverted(super().get(i))

class ByNumber(MemoryImageList):
    "Keeps what it made by number, as one list of v1's forum did, and makes it by its table"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.made = {}
    def get(self, i):
        if i not in self.made: self.made[i] = PILImage(Image.new('RGB', (40,40), (int(self.inner_df.x.iloc[i]*4),0,0)))
        return self.made[i]

class Scaled(MemoryImageList):
    def __init__(self, *args, scale=2, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale
        self.copy_new += ['scale']
    def open(self, fn): return PILImage(super().open(fn).point(lambda v: v//self.scale))

class Plain(MemoryImageList):
    "Gives Pillow's own image"
    def open(self, fn): return Image.open(fn).convert('RGB').transpose(Image.Transpose.FLIP_LEFT_RIGHT)

own_lists = dict(forum=ForumList, open=OpenList, get=GetList, by_number=ByNumber, scaled=partial(Scaled, scale=3), plain=Plain,
                 after_open=partial(MemoryImageList, after_open=inverted), stream=partial(ImageList, after_open=inverted),
                 on_command=type('OnCommand', (OpenList,ImageListInMemory), {'mode':'stream'}))

def table_list(cls, path): return cls([path/f'{o}.jpg' for o in pd.read_csv(path/'labels.csv').name], path=path, inner_df=pd.read_csv(path/'labels.csv'))

@pytest.mark.parametrize('cls,num_workers', [*[(o,0) for o in own_lists.values()],(GetList,2)], ids=[*own_lists,'workers'])
def test_batches_have_what_the_list_shows(path, cls, num_workers):
    il = table_list(cls, path)
    want = {o: np.array(il[i]) for i,o in enumerate(il.items)}
    lists = il.split_by_idx([3,1,20]).label_from_folder()
    data = lists.transform([CropPad(32)]).databunch(bs=4, num_workers=num_workers, device='cpu')
    for _ in range(2):
        for part,dl in zip((lists.train,lists.valid), data.loaders):
            got = [x for b in dl.new(shuffle=False, drop_last=False) for x in b[0]]
            assert len(got)==len(part)
            for x,file in zip(got, part.items):
                assert np.array_equal(np.array(part[part.items.index(file)]), want[file])
                assert np.array_equal(image_of(x), np.array(CropPad(32)(PILImage(Image.fromarray(want[file])), split_idx=1)))
    if il.mode=='lazy': assert data.memory.n_cached==n_files and data.memory.misses==n_files

def image_of(x): return (x*255).round().permute(1,2,0).numpy().astype(np.uint8)

def test_lists_that_open_differently_do_not_share_pixels(path):
    cache = ImageCache()
    def first_of(il): return image_of(il.split_none().label_empty().databunch(bs=n_files, num_workers=0, device='cpu', shuffle=False).one_batch()[0][0])
    def lists(): return [Scaled.from_folder(path, scale=o, cache=cache, include='train') for o in (2,3,2)]+[MemoryImageList.from_folder(path, cache=cache, include='train')]
    (path/'train').rename(path/'old')
    for o in range(4): Image.new('RGB', (20,20), (120,0,0)).save((path/'train').mkdir(exist_ok=True) or path/f'train/{o}.png')
    assert [int(first_of(o)[0,0,0]) for o in lists()]==[60,40,60,120]

def test_an_own_open_is_loaded_on_command(path):
    class Mine(ImageListInMemory):
        def open(self, fn): return inverted(super().open(fn))
    il = Mine.from_folder(path, **folders)
    with pytest.raises(ValueError, match='after the split'): il.load_data()
    lists = il.split_by_folder().load_data().label_from_folder()
    data = make(lists)
    n_read = data.memory.misses
    batches(data)
    assert lists.loaded and data.memory.misses==n_read and lists.purge() and not lists.loaded

def test_labels_that_are_images_are_opened_by_their_list(path):
    class Ones(SegmentationLabelList):
        def open(self, fn): return PILMask.create(fn).point(lambda v: v*2)
    lists = from_folder(MemoryImageList, path).split_by_folder()
    masks = make(lists.label_from_func(mask_of, label_cls=Ones, classes=['dark','light']))
    assert sorted(masks.one_batch()[1].unique().tolist())==[0,2] and get_c(masks)==2
    images = make(lists.label_from_func(noop, label_cls=OpenList))
    batches(images)
    assert images.memory.n_cached==2*n_files and not torch.equal(*images.one_batch())

def test_a_table_that_opens_a_file_twice(path):
    il = table_list(ByNumber, path)
    il.add(table_list(ByNumber, path))
    with pytest.raises(ValueError, match='define `open`'): il.split_none().label_empty().databunch(bs=4)

class NoImage(MemoryImageList):
    def open(self, fn): return image2tensor(super().open(fn))
class Grey(MemoryImageList):
    def open(self, fn): return PILImageBW.create(fn)

@pytest.mark.parametrize('cls,named', [(NoImage,'Tensor'), (Grey,'PILImageBW of mode L')])
def test_what_open_may_give(path, cls, named):
    data = from_folder(cls, path).split_none().label_empty()
    with pytest.raises(TypeError, match=f'{cls.__name__}.*{named}.*return a PILImage'): data.databunch(bs=4, num_workers=0).one_batch()

def test_own_pixels_are_not_kept_in_a_folder(path, tmp_path):
    "Nothing in a file's name could tell the state of one list from that of another"
    labelled = from_folder(OpenList, path, cache=ImageCache(path=tmp_path/'pixels')).split_none().label_empty()
    with pytest.raises(ValueError, match='OpenList.*leave `path` out'): labelled.databunch(bs=4, num_workers=0)

def test_a_learner_with_an_own_open_is_exported_without_images(path, tmp_path):
    class Mine(ByNumber):
        def get(self, i): return inverted(self.open(self.items[i]))
    data = make(table_list(partial(Mine, store='decoded'), path).split_none().label_from_folder())
    learn = Learner(data, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), loss_func=CrossEntropyLossFlat())
    want = learn.get_preds(dl=data.test_dl(get_image_files(path/'test')))[0]
    learn.export(tmp_path/'mine.pkl')
    assert (tmp_path/'mine.pkl').stat().st_size<60_000
    again = load_learner(tmp_path/'mine.pkl')
    with again.no_bar(): assert torch.allclose(again.get_preds(dl=again.dls.test_dl(get_image_files(path/'test')))[0], want, atol=1e-5)
    with again.no_bar(): assert again.predict(PILImage.create(path/'test/0.jpg'))

# --- random numbers, joined lists ---

drawn = dict(rand=lambda il: il.split_by_rand_pct(.3), subsets=lambda il: il.split_subsets(.5, .2), keep=lambda il: il.filter_by_rand(.5).split_none(),
             some=lambda il: il.use_partial_data(.3).split_none())

@pytest.mark.parametrize('f', drawn.values(), ids=drawn)
def test_numpys_seed_fixes_what_is_drawn(original, f):
    il = from_df(ImageList, original)
    def draw(seed):
        np.random.seed(seed)
        return [o.items for o in (f(il).train,f(il).valid)]
    assert draw(42)==draw(42)!=draw(43)

def test_the_split_is_that_of_v1(original):
    il = from_df(ImageList, original)
    np.random.seed(42); order = np.random.permutation(n_files)
    np.random.seed(42); split = il.split_by_rand_pct(.25)
    assert split.valid.items==[il.items[i] for i in order[:6]] and set(split.train.items)==set(il.items)-set(split.valid.items)
    assert len(il.split_by_rand_pct(0.).valid)==0

def test_lists_are_joined(path):
    a,b = from_df(MemoryImageList, path),from_df(MemoryImageList, path)[:3]
    files = [*a.items,*b.items]
    assert a.add(b) is a and a.items==files and len(a.inner_df)==27 and len(a.split_none().label_from_df('x').y)==27
    c = from_folder(ImageList, path)
    assert len(c.add(from_folder(ImageList, path)[:2]))==26 and c.inner_df is None
    with pytest.raises(ValueError, match='table'): c.add(a)
    with pytest.raises(TypeError, match='ImageList'): c.add(files)

# --- words of v1 ---

def test_learn_data_is_what_it_learns_from(black):
    a,b = [black_lists(black).transform(size=o).databunch(bs=2, num_workers=0, device='cpu') for o in (16,20)]
    learn = Learner(a, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), loss_func=CrossEntropyLossFlat())
    assert learn.data is a
    learn.data = b
    assert learn.dls is b and learn.data is b
    with pytest.raises(TypeError, match='databunch'): learn.data = black_lists(black)

lists_of = dict(il=lambda p: from_df(ImageList, p), split=lambda p: from_df(ImageList, p).split_none(), ll=lambda p: from_df(ImageList, p).split_none().label_from_folder(),
                data=lambda p: make(from_df(ImageList, p).split_none().label_from_folder()))
words = dict(  # what is written, on what; what the error says to write
    tfms=('ll', lambda o: o.transform(tfms=[]), 'give them first'), padding=('ll', lambda o: o.transform(padding_mode='zeros'), 'pad_mode'),
    mult=('ll', lambda o: o.transform(mult=2), 'aug_transforms(mult=2)'), mode=('ll', lambda o: o.transform(mode='nearest'), 'aug_transforms'),
    flip=('ll', lambda o: o.transform(do_flip=False), 'aug_transforms(do_flip=False)'), no_check=('ll', lambda o: o.databunch(no_check=True), 'leave it out'),
    ds_tfms=('ll', lambda o: o.databunch(ds_tfms=[]), '.transform('), collate=('ll', lambda o: o.databunch(collate_fn=noop), 'create_batch'),
    presort=('il', lambda o: o.from_folder(o.path, presort=True), 'sorted('), processor=('il', lambda o: ImageList(o.items, processor=noop), 'leave it out'),
    log=('split', lambda o: o.label_from_df('x', label_cls=FloatList, log=True), 'math.log'), by_list=('il', lambda o: o.split_by_list(o, o), 'split_by_idxs'), by_lists=('split', lambda o: o.label_from_lists([], []), 'label_from_func'),
    to_csv=('ll', lambda o: o.to_csv('a.csv'), 'to_csv('),
    to_df=('ll', lambda o: o.to_df(), 'DataFrame'), random=('il', lambda o: o.random_split_by_pct(), 'split_by_rand_pct'), no_split=('il', lambda o: o.no_split(), 'split_none'),
    transform_y=('ll', lambda o: o.transform_y([]), 'transform'), classes=('data', lambda o: o.classes, 'data.vocab'), rows=('data', lambda o: o.show_batch(rows=2), 'max_n=9'),
    ds_type=('data', lambda o: o.show_batch(ds_type=1), 'data.valid.show_batch'), export=('data', lambda o: o.export(), 'learn.export'), save=('data', lambda o: o.save('a.pkl'), 'learn.export'),
    train_dl=('data', lambda o: o.train_dl, 'data.train'), fix_dl=('data', lambda o: o.fix_dl, 'shuffle=False'), stats=('data', lambda o: o.batch_stats(), 'normalize'),
    get_transforms=('il', lambda o: get_transforms(do_flip=False), 'aug_transforms'), bunch=('il', lambda o: ImageDataBunch.from_folder(o.path, ds_tfms=[]), 'ImageDataLoaders'),
    open_image=('il', lambda o: open_image(o.items[0]), 'PILImage.create'), open_mask=('il', lambda o: open_mask(o.items[0]), 'PILMask.create'),
    masks=('il', lambda o: SegmentationItemList.from_folder(o.path), 'SegmentationLabelList'), points=('il', lambda o: PointsItemList.from_folder(o.path), 'PointBlock'),
    boxes=('il', lambda o: ObjectItemList.from_folder(o.path), 'BBoxBlock'), to_images=('il', lambda o: ImageImageList(o.items), 'label_cls=ImageList'),
    ds=('il', lambda o: DatasetType.Valid, 'valid'))

@pytest.mark.parametrize('on,f,match', words.values(), ids=words)
def test_a_word_of_v1_names_todays(original, on, f, match):
    with pytest.raises((TypeError,AttributeError), match=re.escape(match)) as error: f(lists_of[on](original))
    assert '\n' not in str(error.value) and 'v1' in str(error.value)

def test_words_of_v1_hide_none_of_v2():
    import fastai.vision.all as v2
    from fastmem.v1_words import V1Name
    import fastmem.all
    names = [k for k,v in vars(fastmem.all).items() if isinstance(v, V1Name)]
    assert len(names)>5 and not [o for o in names if hasattr(v2, o)]

def test_a_databunch_is_pickled_as_stock(black):
    data = black_lists(black, ImageList).databunch(bs=2, num_workers=0, device='cpu')
    assert isinstance(data, DataLoaders) and type(pickle.loads(pickle.dumps(data.new_empty()))) is DataLoaders
    assert data.vocab==['a','b'] and not hasattr(data, 'nonsense')
    data.show_batch(max_n=1)
