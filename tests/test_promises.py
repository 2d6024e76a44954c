"A hit gives what a fresh read gives, for as long as it would: change this, then that must come"
import contextlib, gc

import pytest
from fastai.vision.all import *
from fastmem.all import *
from helpers import *
from pipelines import *

@pytest.fixture(scope='module', autouse=True)
def quickly():
    "What is imported by now is no garbage, and such small batches need one thread"
    n_threads = torch.get_num_threads()
    gc.collect(); gc.freeze(); torch.set_num_threads(1)
    yield
    gc.unfreeze(); torch.set_num_threads(n_threads)

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('promises')/'data')

stores = dict(resized=dict(store='resized'), decoded=dict(store='decoded'), encoded=dict(store='encoded'), path=dict(store='decoded', path='cache'))

# --- what is changed between epochs, and in the middle of one ---

def spec_for(name):
    f = changes[name]
    return Spec(items=f.items or 'paths', target=f.targets[0] if f.targets else 'category')

@functools.lru_cache(maxsize=None)
def of_stock(folder, spec, name, when):
    "Stock's batches after the change `name`"
    return run(make_seeded(spec, folder), folder, name, when)

def make_seeded(spec, folder):
    seeded(1)
    return make(spec, folder)

def run(dls, folder, name, when):
    "Batches of three epochs, of which the change comes before the first, before the second or within the second"
    def apply():
        if name is not None: changes[name](dls, folder)
    with opening_kept():
        if when=='cold': apply()
        res = [epoch(dls, 0)]
        if when=='warm': apply()
        res.append(epoch(dls, 1, mid=apply if when=='within' else None))
        return [*res, epoch(dls, 2)]

def check_change(folder, tmp_path, store, name, when, workers=0):
    spec = spec_for(name)._replace(workers=workers)
    want = of_stock(folder, spec, name, when)
    if not difference(want, of_stock(folder, spec, None, 'warm')): pytest.fail(f'{name} changes nothing in stock: this test could not fail')
    dls = make_seeded(spec, folder)
    options = stores[store]
    if 'path' in options: options = {**options, 'path': tmp_path/'cache'}
    got = run(dls.in_memory(**options), folder, name, when)
    if store=='resized' and refused(got): return
    found = difference(want, got, exact=store!='resized')
    if found: pytest.fail(f'epoch, loader, batch, element: {found}')

def refused(epochs):
    "Whether it was said that what is asked for can't be kept resized"
    errors = [o for e in epochs for dl in e for o in dl if isinstance(o, Exception)]
    return bool(errors) and all(isinstance(o, ValueError) and "store='decoded'" in str(o) or "store='resized' needs" in str(o) for o in errors)

@pytest.mark.parametrize('when', ['cold','warm','within'])
@pytest.mark.parametrize('store', stores)
@pytest.mark.parametrize('name', changes)
def test_what_is_changed_comes(folder, tmp_path, store, name, when): check_change(folder, tmp_path, store, name, when)
