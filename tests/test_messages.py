"What fastmem says while it works: short lines that say what to write, short tracebacks, a bar that ends where it stopped"
import re, traceback

import pytest
from fastai.vision.all import *
from fastmem.all import *
from fastmem.messages import Nouns, warn_full
from fastprogress import fastprogress
from helpers import photo_folder

@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('photos')
    photo_folder(path, 20, (120,90))
    return path

def photo_dls(path, create=None, block=ImageBlock):
    "Loaders of images; `create` opens them if given"
    if create is not None: block = TransformBlock(type_tfms=create, batch_tfms=IntToFloatTensor)
    data = DataBlock((block, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.2, seed=1), item_tfms=Resize(64))
    return data.dataloaders(path, bs=4, num_workers=0, device='cpu')

def n_frames(e): return len(traceback.extract_tb(e.__traceback__))

@pytest.mark.parametrize('wrong,said', [
    (dict(store='resizd'), "it is one of 'auto', 'resized'"), (dict(guard=2_000_000_000), 'write guard=MemoryGuard(limit_bytes=2e9)'),
    (dict(guard='4GB'), 'write guard=MemoryGuard(limit_bytes=2e9)'), (dict(limit_gb=8), "in_memory() got an unexpected keyword argument 'limit_gb'")])
def test_a_wrong_option_is_one_line_in_two_frames(path, wrong, said):
    try: photo_dls(path).in_memory(**wrong)
    except (TypeError,ValueError) as e: assert said in str(e) and n_frames(e)==2
    else: pytest.fail('it was taken')

class Stopping(PILImage):
    "Opens ten images; then somebody presses Ctrl-C"
    n_left = 10
    @classmethod
    def create(cls, fn, **kwargs):
        Stopping.n_left -= 1
        if Stopping.n_left==-1: raise KeyboardInterrupt
        return super().create(fn, **kwargs)

def test_an_interrupted_preload_says_what_is_kept_and_goes_on(path, capsys, monkeypatch):
    monkeypatch.setattr(Stopping, 'n_left', 1000)
    dls = photo_dls(path, Stopping.create).in_memory(store='decoded')
    Stopping.n_left = 10
    bars = []
    monkeypatch.setattr(fastprogress.ConsoleProgressBar, 'on_update', lambda self, val, text: bars.append(val))
    try: dls.preload(n_workers=0)
    except KeyboardInterrupt as e: assert n_frames(e)==2
    else: pytest.fail('it went on')
    said = [o for o in capsys.readouterr().out.splitlines() if o.startswith('fastmem:')]
    n_kept = dls.memory.n_cached
    assert 0<n_kept<20 and bars[-1]==n_kept, 'the bar ends where it stopped'
    assert said==[f'fastmem: stopped: {n_kept} images are kept, and the same call goes on from there']
    assert dls.preload(n_workers=0).n_cached==20

def test_after_a_preload_no_rate_of_hits_is_shown(path):
    "Before a batch asks, that would be 0 %; a block has read one image to make the loaders"
    assert 'none yet' in repr(photo_dls(path).in_memory(mode='preload').memory)
    assert '1 from disk' in repr(photo_dls(path, block=MemImageBlock(guard=MemoryGuard(limit_bytes=10_000_000))).preload())

def test_a_bar_that_a_limit_ends_stays_where_it_ended(path, monkeypatch):
    bars = []
    monkeypatch.setattr(fastprogress.ConsoleProgressBar, 'on_update', lambda self, val, text: bars.append(val))
    dls = photo_dls(path).in_memory(guard=MemoryGuard(limit_bytes=150_000))
    assert 5<dls.preload().n_cached<20 and bars[-1]==dls.memory.n_cached

def test_the_line_of_a_full_cache_is_short_and_told_once(path, capsys):
    for _ in range(2): dls = photo_dls(path).in_memory(guard=MemoryGuard(limit_bytes=100_000))
    dls.preload()
    cache = dls.train.cache
    cache.resume()
    warn_full(cache, Nouns('samples', 'samples', 'the dataset', 'fewer or smaller samples'))
    said = [o for o in capsys.readouterr().out.splitlines() if 'read from' in o]
    assert len(said)==3 and "or store='encoded'" in said[0]
    for o in said: assert len(o.split())<=30 and re.search(r' https://\S+/doctor\.html#full$', o), o

def test_a_purge_shows_what_it_gave_back(path, capsys):
    given = photo_dls(path).in_memory(mode='preload').purge()
    assert repr(given)==f'{human_bytes(int(given))} given back' and str(given)==str(int(given)) and given>10_000

def test_the_progress_table_shows_two_decimals(path, capsys):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,3))
    learn = Learner(photo_dls(path).in_memory(), net, loss_func=CrossEntropyLossFlat(), cbs=MemoryCallback())
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    hit_rate,free_gb = learn.recorder.values[-1][-2:]
    assert f'{hit_rate:.6f}'=='1.00' and hit_rate==1 and re.fullmatch(r'\d+\.\d\d', f'{free_gb:.6f}')
    assert 'came from memory, which saved about' in capsys.readouterr().out
