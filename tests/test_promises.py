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
    dls = make_seeded(spec, folder)
    options = stores[store]
    if 'path' in options: options = {**options, 'path': tmp_path/'cache'}
    got = run(dls.in_memory(**options), folder, name, when)
    if store in ('resized','encoded') and refused(got): return
    found = difference(want, got, exact=store!='resized')
    if found: pytest.fail(f'epoch, loader, batch, element: {found}')

def refused(epochs):
    "Whether it was said that what is asked for can't be kept so, and how it can"
    errors = [o for e in epochs for dl in e for o in dl if isinstance(o, Exception)]
    return bool(errors) and all(isinstance(o, ValueError) and ("store='decoded'" in str(o) or "needs a `Resize`" in str(o)) for o in errors)

names = [o for o in changes if o!=f'item_tfms_{Spec().tfms}']
once_an_epoch = {o for o in names if changes[o].items=='table'} # a table is looked at once an epoch
of_the_next_epoch = {'do_item_set','another_bs','drop_last_turned'} # stock asks for these where an epoch begins

@pytest.mark.parametrize('name', names)
def test_the_table_can_fail(folder, name):
    "Each change is seen in stock's batches; but for `create`, which transforms hold"
    spec = spec_for(name)
    assert bool(difference(of_stock(folder, spec, name, 'warm'), of_stock(folder, spec, None, 'warm'))) == (name!='create_patched')

@pytest.mark.parametrize('store', stores)
@pytest.mark.parametrize('name', names)
def test_what_is_changed_between_epochs_comes(folder, tmp_path, store, name): check_change(folder, tmp_path, store, name, 'warm')

@pytest.mark.parametrize('name', names)
def test_what_is_changed_before_anything_is_kept_comes(folder, tmp_path, name): check_change(folder, tmp_path, 'resized', name, 'cold')

@pytest.mark.parametrize('name', [o for o in names if o not in once_an_epoch|of_the_next_epoch])
def test_what_is_changed_within_an_epoch_comes_in_the_next_batch(folder, tmp_path, name): check_change(folder, tmp_path, 'decoded', name, 'within')

with_workers = ['dataset_by_another','items_turned_in_place','a_column_of_labels','folder_of_a_users_getter','vocabulary_in_place','item_tfms_late','load_image_patched']
@pytest.mark.parametrize('name', with_workers)
def test_what_is_changed_comes_with_workers(folder, tmp_path, name): check_change(folder, tmp_path, 'decoded', name, 'warm', workers=2)
