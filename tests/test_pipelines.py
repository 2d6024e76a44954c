"Any pipeline, any sequence of changes and epochs: every batch is stock's"
import gc, shutil, tempfile

import pytest
from hypothesis import HealthCheck, given, note, settings, strategies as st
from fastai.vision.all import *
from fastmem.all import *
from pipelines import *

specs = st.builds(Spec, items=st.sampled_from(['paths','table']), target=st.sampled_from(['category','mask','regression','image']),
                  tfms=st.sampled_from(list(item_tfms)), bs=st.integers(1, 5), shuffle=st.booleans(), drop_last=st.booleans())
within = [o for o in changes if o not in ('do_item_set','another_bs','drop_last_turned','vocabulary_in_place') and changes[o].items!='table']

@st.composite
def sequences(draw, workers=(0,)):
    "(pipeline, options, whether images are of two sizes, steps)"
    spec = draw(specs)._replace(workers=draw(st.sampled_from(workers)))
    stores = ['auto','decoded','encoded'] + (['resized'] if spec.tfms in resized_tfms else [])
    store = draw(st.sampled_from(stores))
    has_path = store!='encoded' and draw(st.booleans())
    names = st.sampled_from([o for o in changes if fits(o, spec)])
    steps = [st.tuples(st.just('epoch'), st.sampled_from([None,None,0,1])), st.tuples(st.just('change'), names),
             st.tuples(st.sampled_from(['purge','preload','refresh','check','memory']), st.none()), st.tuples(st.just('file'), st.integers(0, n_files-1)),
             st.tuples(st.just('again'), st.sampled_from(['auto','decoded']))]
    if not spec.workers: steps.append(st.tuples(st.just('within'), st.sampled_from([o for o in within if fits(o, spec)])))
    is_mixed = spec.tfms!='none' and draw(st.booleans())
    return spec, dict(store=store), has_path, is_mixed, draw(st.lists(st.one_of(steps), min_size=2, max_size=8))

class Sides:
    "Stock's loaders, and the same in memory"
    def __init__(self, spec, options, has_path, is_mixed, folder):
        store_attr()
        self.options = {**options, **(dict(path=folder/'cache') if has_path else {})}
        self.exact = options['store'] in ('decoded','encoded')
        write_folder(folder/'data', is_mixed)
        self.sides = [self.make(),self.make()]
        self.ours.in_memory(**self.options)
        self.n = 0

    def make(self):
        seeded(1)
        return make(self.spec, self.folder/'data')

    @property
    def ours(self): return self.sides[1]

    def step(self, what, arg):
        if what in ('epoch','within'): return self.epoch(None if what=='within' else arg, arg if what=='within' else None)
        if what=='change':
            errors = []
            for o in self.sides:
                seeded(self.n)  # a new loader draws its own random numbers
                errors.append(self.change(o, arg))
            assert errors[0]==errors[1], f'{arg} raised {errors}'
        elif what=='file': self.write(arg)
        elif what=='again':
            try: self.ours.in_memory(**{**self.options, 'store': arg})
            except TypeError as e:
                if 'as it is now' not in str(e): raise  # no image class opens them any more
                return
            self.exact = arg=='decoded'
        elif what=='check': self.ours.memory.check()
        elif what=='memory': repr(self.ours.memory)
        else: getattr(self.ours, what)()

    def change(self, dls, name):
        try: changes[name](dls, self.folder/'data')
        except Exception as e:
            if self.refuses(e): raise
            return type(e)  # it does not fit what was changed before: the same on both sides

    def write(self, k):
        "Write another image, and have it read again"
        for i,o in enumerate(sorted((self.folder/'data').glob(f'*/{k:02}_*'))):
            at_ns = o.stat().st_mtime_ns+10**9
            (mask(k+2) if 'masks' in o.parent.name else picture(k+5+i)).save(o)
            os.utime(o, ns=(at_ns,at_ns))
        self.ours.refresh()

    def epoch(self, only, mid):
        self.n += 1
        want,got = [self.epoch_of(o, only, mid) for o in self.sides]
        found = difference(want, got, self.exact)
        if found and self.is_refusal(got): raise ValueError('what is asked for is refused: give another store=')  # the sides differ from here on
        assert not found, f'loader, batch, element: {found}'

    def epoch_of(self, dls, only, mid):
        "Batches of one side; what opens images is replaced once it was for both"
        if mid in opening:
            with opening_kept(): res = epoch(dls, self.n, only, lambda: self.change(dls, mid))
            if dls is self.ours: self.change(dls, mid)
            return res
        return epoch(dls, self.n, only, (lambda: self.change(dls, mid)) if mid else None)

    def is_refusal(self, got):
        "Whether it was said that what is asked for can't be kept in the store that was asked for"
        return any(self.refuses(o) for dl in got for o in dl)

    def refuses(self, e):
        if self.options['store'] not in ('resized','encoded') or not isinstance(e, ValueError): return False
        return "store='decoded'" in str(e) or 'needs a `Resize`' in str(e)

def run_sequence(spec, options, has_path, is_mixed, steps):
    "Take `steps` on both sides"
    folder = Path(tempfile.mkdtemp())
    try:
        with opening_kept():
            sides = Sides(spec, options, has_path, is_mixed, folder)
            for i,(what,arg) in enumerate([('epoch',None), *steps, ('epoch',None)]):
                try: sides.step(what, arg)
                except Exception as e:
                    if isinstance(e, ValueError) and 'store=' in str(e) and sides.options['store'] in ('resized','encoded'): return
                    e.steps = f'step {i}, {what} {arg}, of {[("epoch",None), *steps]} with {spec}, {sides.options}, mixed sizes: {is_mixed}'
                    note(e.steps)
                    raise
    finally: shutil.rmtree(folder)

@pytest.fixture(scope='module', autouse=True)
def quickly():
    n_threads = torch.get_num_threads()
    gc.collect(); gc.freeze(); torch.set_num_threads(1)
    yield
    gc.unfreeze(); torch.set_num_threads(n_threads)

quietly = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))

@settings(max_examples=100, derandomize=True, **quietly)
@given(sequences())
def test_every_batch_is_stocks(sequence): run_sequence(*sequence)

def test_items_beyond_the_end_are_an_error_only_for_who_reads_them():
    steps = [('within','dataset_by_the_other_subset'), ('within','create_item_set')]
    run_sequence(Spec(target='image', tfms='random_crop', bs=2, shuffle=False, drop_last=False), dict(store='decoded'), False, True, steps)

@settings(max_examples=3, derandomize=True, **quietly)
@given(sequences(workers=(2,)))
def test_every_batch_is_stocks_with_workers(sequence): run_sequence(*sequence)
