"The same cell again, another batch size or fold, and files that have changed meanwhile"
import contextlib, gc, shutil, weakref

import pytest
from fastai.vision.all import *
from fastmem.all import *
from helpers import photo_folder, run_forked

def make(path, size=32, bs=4, seed=1, workers=0, **kwargs):
    return ImageDataLoaders.from_folder(path, valid_pct=.25, seed=seed, item_tfms=Resize(size), bs=bs, num_workers=workers, device='cpu', **kwargs)

def one_pass(dls):
    for dl in dls.loaders:
        for _ in dl.new(drop_last=False): pass

def held_bytes(): return sum(o.used_bytes for o in shared_guard().arenas)

others = dict(again={}, bs=dict(bs=8), fold=dict(seed=2), batch_tfms=dict(batch_tfms=aug_transforms()), workers=dict(workers=2))

@pytest.mark.parametrize('what', others)
def test_the_same_images_are_found_again(tmp_path, what):
    "Also when their folder is gone"
    files = photo_folder(tmp_path/'images', 12, size=(60,50))
    dls = make(tmp_path/'images').in_memory()
    one_pass(dls)
    held,misses = held_bytes(),dls.memory.misses
    set_seed(0)
    again = make(tmp_path/'images', **others[what])
    shutil.rmtree(tmp_path/'images')
    again.in_memory()
    one_pass(again)
    assert again.memory.misses==misses and again.memory.n_cached==len(files) and held_bytes()==held

def test_a_block_finds_them_too(tmp_path):
    photo_folder(tmp_path, 12, size=(60,50))
    def make_dls(bs):
        block = DataBlock((MemImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.25, seed=1), item_tfms=Resize(32))
        return block.dataloaders(tmp_path, bs=bs, num_workers=0, device='cpu')
    dls = make_dls(4); one_pass(dls)
    assert make_dls(8).train.cache is dls.train.cache

@pytest.mark.parametrize('kwargs', [dict(size=48), dict(guard=MemoryGuard(limit_bytes=10**9))], ids=['size','guard'])
def test_others_have_a_cache_of_their_own(tmp_path, kwargs):
    "Another size, another guard"
    photo_folder(tmp_path, 12, size=(60,50))
    dls = make(tmp_path).in_memory()
    other = make(tmp_path, size=kwargs.get('size', 32)).in_memory(guard=kwargs.get('guard'))
    assert other.train.cache is not dls.train.cache

def test_a_guard_that_the_cell_makes_is_the_same_guard(tmp_path):
    photo_folder(tmp_path, 12, size=(60,50))
    dls,again = (make(tmp_path).in_memory(guard=MemoryGuard(limit_bytes=10**8)) for _ in range(2))
    assert again.train.cache is dls.train.cache

def test_other_images_have_a_cache_of_their_own(tmp_path):
    photo_folder(tmp_path/'a', 8, size=(60,50)); photo_folder(tmp_path/'b', 8, size=(60,50))
    dls,other = make(tmp_path/'a').in_memory(),make(tmp_path/'b').in_memory()
    assert other.train.cache is not dls.train.cache

def test_memory_is_gone_with_the_last_who_uses_it(tmp_path):
    photo_folder(tmp_path, 12, size=(60,50))
    gc.collect(); before = held_bytes()
    dls = make(tmp_path).in_memory(); one_pass(dls)
    again = make(tmp_path, bs=8).in_memory()
    del dls; gc.collect()
    assert held_bytes()>before
    del again; gc.collect()
    assert held_bytes()==before

def test_a_purged_cache_is_filled_again(tmp_path):
    "`purge` in preload mode pauses; the cell that builds the loaders means to go on"
    files = photo_folder(tmp_path, 12, size=(60,50))
    dls = make(tmp_path).in_memory(mode='preload')
    dls.purge()
    again = make(tmp_path).in_memory()
    one_pass(again)
    assert again.memory.n_cached==len(files)

def red(file): Image.new('RGB', (60,50), (255,0,0)).save(file, quality=95)
def reds(dls):
    "Names of the training images that are red"
    dl = dls.train.new(shuffle=False, drop_last=False)
    return {dls.train_ds.items[i].name for i,x in enumerate(torch.cat([x for x,_ in dl])) if x[0].mean()>.9 and x[1:].mean()<.1}

@pytest.mark.parametrize('workers', [0,2])
def test_a_changed_file_is_noticed_and_read_again(tmp_path, workers):
    photo_folder(tmp_path, 12, size=(60,50))
    dls = make(tmp_path, workers=workers).in_memory()
    one_pass(dls)
    assert dls.memory.check()==[]
    changed,gone = dls.train_ds.items[1],dls.train_ds.items[2]
    red(changed); gone.unlink()
    assert dls.memory.check()==[str(changed)] and reds(dls)==set()
    assert dls.refresh()==[str(changed)]
    assert reds(dls)=={changed.name} and dls.memory.check()==[]

def test_a_changed_file_is_read_again_by_new_loaders(tmp_path):
    photo_folder(tmp_path, 12, size=(60,50))
    dls = make(tmp_path).in_memory(); one_pass(dls)
    changed = dls.train_ds.items[1]; red(changed)
    assert reds(make(tmp_path).in_memory())=={changed.name}

def test_all_files_that_change_while_others_read(tmp_path):
    "Each is found, once, though it is in the training set and in the validation set"
    files = photo_folder(tmp_path, 12, size=(60,50))
    dls = ImageDataLoaders.from_path_func(tmp_path, files, parent_label, valid_pct=.25, item_tfms=Resize(32), bs=4, num_workers=0, device='cpu').in_memory(mode='preload')
    for o in files: red(o)
    assert sorted(dls.refresh())==sorted(map(str, files)) and dls.memory.n_cached==0
    assert len(reds(dls))==len(dls.train_ds)

# --- in training ---

def learner(path, workers=0, **kwargs):
    dls = make(path, workers=workers).in_memory(**kwargs)
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(32*32*3, 3)), metrics=accuracy, cbs=MemoryCallback())

@pytest.mark.parametrize('workers', [0,2])
def test_the_progress_table_shows_hit_rates(tmp_path, workers, capsys):
    photo_folder(tmp_path, 12, size=(60,50))
    learn = learner(tmp_path, workers)
    with learn.no_bar(): learn.fit(3)
    assert learn.recorder.metric_names[-3:]==['hit_rate','free_gb','time']
    assert [round(o[3], 6) for o in learn.recorder.values]==[0,1,1] and all(o[4]>0 for o in learn.recorder.values)
    hits = learn.dls.memory.hits
    out = capsys.readouterr().out
    assert f'fastmem: {hits} images came from memory, which saved about' in out
    learn.fit(1)
    assert learn.recorder.metric_names.count('hit_rate')==1 and learn.metrics.attrgot('name')==['accuracy']

columns = ['epoch','train_loss','valid_loss','accuracy']
class Interrupt(Callback):
    def after_batch(self): raise KeyboardInterrupt

@pytest.mark.parametrize('stays', [True,False], ids=['of the learner','of the fit'])
def test_an_interrupted_fit_leaves_no_columns(tmp_path, stays):
    photo_folder(tmp_path, 12, size=(60,50))
    learn = learner(tmp_path)
    if not stays: learn.remove_cb(MemoryCallback)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[Interrupt()] if stays else [MemoryCallback(),Interrupt()])
    assert learn.metrics.attrgot('name')==['accuracy'] and len(learn.validate())==2 and len(learn.get_preds()[0])==3
    learn.fit(1)
    assert learn.recorder.metric_names==[*columns, *(['hit_rate','free_gb'] if stays else []), 'time']
    assert len(learn.recorder.values[0])==(5 if stays else 3)
    learn.fit(1, cbs=[] if stays else MemoryCallback())
    assert learn.recorder.metric_names==[*columns, 'hit_rate', 'free_gb', 'time'] and len(learn.recorder.values[0])==5

def test_an_interrupted_lr_find_leaves_the_columns_of_the_next_fit(tmp_path, capsys):
    photo_folder(tmp_path, 12, size=(60,50))
    learn = learner(tmp_path)
    learn.add_cb(Interrupt())
    with pytest.raises(KeyboardInterrupt): learn.lr_find(num_it=3, show_plot=False)
    learn.remove_cb(Interrupt)
    learn.fit(1)
    assert learn.recorder.metric_names==[*columns, 'hit_rate', 'free_gb', 'time'] and 'came from memory' in capsys.readouterr().out

def test_a_fit_that_is_cancelled_and_a_validation(tmp_path, capsys):
    photo_folder(tmp_path, 12, size=(60,50))
    learn = learner(tmp_path)
    class Cancel(Callback):
        def after_batch(self): raise CancelFitException
    learn.fit(1, cbs=Cancel())
    assert 'came from memory' in capsys.readouterr().out
    assert len(learn.validate())==2 and 'came from memory' not in capsys.readouterr().out, 'as stock: loss and accuracy'

def test_other_callbacks_see_the_columns(tmp_path):
    photo_folder(tmp_path, 12, size=(60,50))
    learn = learner(tmp_path)
    learn.path = tmp_path
    learn.recorder.train_metrics,learn.recorder.add_time = True,False
    with learn.no_bar(): learn.fit(2, cbs=[CSVLogger(), save := SaveModelCallback(monitor='hit_rate', comp=np.greater)])
    assert learn.recorder.metric_names[-2:]==['hit_rate','free_gb'] and save.best==1
    lines = (tmp_path/'history.csv').read_text().splitlines()
    assert [len(o.split(',')) for o in lines]==[7]*3 and [o.split(',')[5] for o in lines[1:]]==['0.0','1.0']

def test_predictions_and_lr_find_are_left_alone(tmp_path, capsys):
    photo_folder(tmp_path, 40, size=(60,50))
    learn = learner(tmp_path)
    learn.lr_find(num_it=3, show_plot=False); learn.get_preds()
    assert 'came from memory' not in capsys.readouterr().out

without_fastmem = '''
import sys
sys.modules['fastmem'] = None  # an import of it fails, as where it is not installed
from fastai.vision.all import *
for o in sys.argv[1:]:
    learn = load_learner(o)
    assert [type(o).__name__ for o in learn.cbs].count('Callback')==1, learn.cbs
    with learn.no_bar(): assert learn.predict(PILImage.create(np.zeros((50,60,3), np.uint8)))[0] in 'abc'
'''

def test_a_learner_with_the_callback_is_exported_without_images(tmp_path):
    "And loads where there is no fastmem; an interrupted one too"
    photo_folder(tmp_path/'images', 12, size=(60,50))
    for name,cbs in (('whole',[]), ('interrupted',[Interrupt()])):
        learn = learner(tmp_path/'images')
        with contextlib.suppress(KeyboardInterrupt): learn.fit(1, cbs=cbs)
        learn.remove_cb(Interrupt)
        learn.export(tmp_path/f'{name}.pkl')
        learn.fit(1)
        assert learn.recorder.metric_names[-3:]==['hit_rate','free_gb','time'], 'and it goes on'
    run_forked(tmp_path, without_fastmem, tmp_path/'whole.pkl', tmp_path/'interrupted.pkl')

# --- what an acceptance check found ---

def test_a_look_at_the_memory_keeps_nothing(tmp_path):
    photo_folder(tmp_path, 12, size=(60,50))
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.25, bs=4, item_tfms=Resize(32), num_workers=0, device='cpu').in_memory(mode='preload')
    looked,arena = dls.memory,weakref.ref(dls.train.cache.arena)
    repr(looked); looked._repr_html_()
    assert looked.check()==[]
    del dls; gc.collect()
    assert arena() is None and 'images' in repr(looked)
    with pytest.raises(RuntimeError, match='are gone'): looked.check()

@pytest.mark.parametrize('valid', [[], [0]])
def test_loaders_without_a_validation_set_find_the_living_cache(tmp_path, valid):
    files = photo_folder(tmp_path, 12, size=(60,50))
    def make(bs):
        block = DataBlock([ImageBlock,CategoryBlock], get_y=parent_label, splitter=IndexSplitter(valid), item_tfms=Resize(32))
        return block.dataloaders(files, bs=bs, num_workers=0, device='cpu')
    dls = make(4).in_memory(mode='preload')
    again = make(6).in_memory()
    assert again.train.cache is dls.train.cache and again.memory.n_cached==12

def test_the_warmest_living_cache_is_found(tmp_path):
    photo_folder(tmp_path, 12, size=(60,50))
    def make(): return ImageDataLoaders.from_folder(tmp_path, valid_pct=.25, bs=4, item_tfms=Resize(32), num_workers=0, device='cpu')
    cold = [make().in_memory(cache=ImageCache()) for _ in range(3)]
    warm = make().in_memory(cache=ImageCache(), mode='preload')
    cold += [make().in_memory(cache=ImageCache()) for _ in range(3)]
    assert make().in_memory().train.cache is warm.train.cache
