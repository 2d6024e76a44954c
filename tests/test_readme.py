"What README.md promises: its numbers, its writer, and how like stock's the batches are"
import re, sys
from pathlib import Path

import fastmem, pytest
from fastai.vision.all import *
from fastmem.all import *
from helpers import photo_folder, psnr

root = Path(__file__).parents[1]

def test_its_table_is_what_the_results_say(monkeypatch):
    monkeypatch.syspath_prepend(root/'benchmarks')
    import readme
    results = readme.load()
    shown = (root/'nbs/llms.txt').read_text()
    assert readme.table(results) in shown and readme.about(results) in shown

def test_nbdev_readme_leaves_it_alone(monkeypatch):
    "It would write another README than `.ci/docs.py readme`, which CI compares"
    from nbdev.quarto import nbdev_readme
    before = (root/'README.md').read_bytes()
    monkeypatch.chdir(root)
    monkeypatch.setenv('PATH', '')  # Quarto can't run
    for chk_time in (False,True): nbdev_readme(chk_time=chk_time)
    assert (root/'README.md').read_bytes()==before

def test_versions_and_names_agree():
    project = (root/'pyproject.toml').read_text()
    assert re.search(r'^name = "fastai-fastmem"', project, flags=re.M) and (root/'fastmem/py.typed').exists()
    assert f'version: {fastmem.__version__}' in (root/'CITATION.cff').read_text()
    assert f'## {fastmem.__version__}' in (root/'CHANGELOG.md').read_text()

def photo_batches(path, in_memory=None):
    "Images of a training epoch and of validation, from fixed seeds"
    set_seed(7)
    dls = ImageDataLoaders.from_folder(path, valid_pct=.4, seed=1, item_tfms=Resize(96), bs=4, num_workers=0, device='cpu')
    if in_memory: dls.in_memory(store=in_memory, cache=ImageCache(), mode='preload')
    set_seed(3)
    dls.train.rng = random.Random(5)
    return [torch.cat([x for x,_ in dl]) for dl in dls.loaders]

@pytest.fixture(scope='module')
def stock(tmp_path_factory):
    path = tmp_path_factory.mktemp('photos')
    photo_folder(path, 20, (250,190))
    return path,photo_batches(path)

def test_resized_is_as_like_stock_as_it_says(stock):
    "Validation by rounding; random crops are moved by less than a stored pixel"
    path,want = stock
    train,valid = [[min(psnr(a, b, 1), 99) for a,b in zip(*o)] for o in zip(photo_batches(path, 'resized'), want)]
    assert np.mean(valid)>=50 and 34<=np.mean(train)<50

def test_decoded_is_stock_to_the_bit(stock):
    path,want = stock
    assert all(a.equal(b) for a,b in zip(photo_batches(path, 'decoded'), want))
