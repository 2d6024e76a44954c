"The harness: contestants run in turns, and every timing is kept"
import gc, statistics, time
from operator import itemgetter

from fastcore.all import *

class Contestant:
    "One way to load images: `prepare` is not timed, `epoch` is"
    once = False # Whether a run is one epoch; a warm contestant runs epoch after epoch for `min_s`
    def __init__(self,
        name:str, # Shown in tables
        loader=None, # Iterable of batches
        note:str='', # Its settings
        num_workers:int=0, # Asked for
        images=itemgetter(0), # Function from a batch to its images
    ):
        store_attr()
        self.batch,self.runs = None,[]

    def prepare(self): "What has to be done before each run"
    def epoch(self)->int: # Images that came
        "Load all images once"
        n = 0
        for b in self.loader: n += len(self.images(b))
        if n==0: raise ValueError('no batch: too few files')
        self.batch = ifnone(self.batch, batch_format(self.images(b)))
        return n

class FirstEpoch(Contestant):
    "The first epoch of new DataLoaders, in each run"
    once = True
    def __init__(self,
        name:str,
        make, # Function that gives new `DataLoaders`
        **kwargs # As for `Contestant`
    ):
        super().__init__(name, **kwargs)
        self.make = make

    def prepare(self):
        self.loader = None
        self.loader = self.make().train

def batch_format(
    images, # Of one batch
)->str:
    "For instance 'uint8 64×3×224×224'"
    return f'{images.dtype} {"×".join(map(str, images.shape))}'.replace('torch.','')

def timed_run(
    o:Contestant,
    min_s:float, # A warm contestant is timed for at least this long
)->dict: # Epochs, images and seconds
    "One run, with Python's garbage collection before it and not in it"
    o.prepare()
    gc.collect(); gc.disable()
    try:
        n_epochs,n_images,start_s,took_s,start_cpu_s = 0,0,time.perf_counter(),0.,time.process_time()
        while n_epochs==0 or (took_s<min_s and not o.once):
            n_images += o.epoch()
            n_epochs,took_s = n_epochs+1,time.perf_counter()-start_s
    finally: gc.enable()
    return dict(epochs=n_epochs, images=n_images, seconds=took_s, cpu_seconds=time.process_time()-start_cpu_s)

def warm_up(
    contestants:list,
)->dict: # {(name, num_workers): error} of those that can't run
    "One untimed run of each"
    failed = {}
    for o in contestants:
        try: timed_run(o, 0)
        except Exception as e: failed[o.name, o.num_workers] = why(e)
    return failed

def why(
    e:Exception,
)->str:
    "One line: what went wrong"
    return f'{type(e).__name__}: {last(str(e).strip().splitlines()) or ""}'

def interleave(
    contestants:list,
    runs:int=5,
    min_s:float=.2, # As for `timed_run`
)->list: # Of results, one for each contestant
    "Run A B C A B C …, after one untimed run of each"
    failed = warm_up(contestants)
    able = [o for o in contestants if (o.name, o.num_workers) not in failed]
    gc.collect(); gc.freeze()  # so that the collections before each run have little to look at
    for _ in range(runs):
        for o in able: o.runs.append(timed_run(o, min_s))
    gc.unfreeze()
    return [result(o, failed.get((o.name, o.num_workers))) for o in contestants]

def result(
    o:Contestant,
    error:str=None, # Why it could not run
)->dict: # For the JSON file
    "All timings of a contestant"
    res = dict(name=o.name, num_workers=o.num_workers, note=o.note, batch=o.batch, runs=o.runs)
    if error: return {**res, 'error': error}
    return {**res, 's_per_image': statistics.median(run_s(res))}

def run_s(
    result:dict,
)->list: # Seconds per image of each run
    "The speed of each run"
    return [o['seconds']/o['images'] for o in result['runs']]

def cpu_ratios(
    result:dict,
    against:dict, # Of the same `interleave`
)->dict: # As from `spread`
    "Processor time of this process for an image, in units of that of `against`, run by run"
    each_s = [[o['cpu_seconds']/o['images'] for o in r['runs']] for r in (result,against)]
    return spread([a/b for a,b in zip(*each_s)])

def find(
    results:list,
    name:str,
    num_workers:int=0,
)->dict: # `None` if it did not run
    "The result of one contestant"
    return first(o for o in results if o['name']==name and o['num_workers']==num_workers and 'error' not in o)

def spread(
    values:list, # One for each run
)->dict:
    "Median, least and most"
    return dict(median=statistics.median(values), min=min(values), max=max(values), values=list(values))

def speedups(
    result:dict,
    against:dict, # Of the same `interleave`
)->dict: # As from `spread`
    "How many times as fast as `against`, run by run"
    return spread([b/a for a,b in zip(run_s(result), run_s(against))])
