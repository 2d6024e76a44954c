"Where the time of a warm epoch goes: the floor, then each layer above it, in ns per image"
from fastmem.all import *
from contest import *
from data import *
from peers import Pixels, bare_gather, memcpy

class Calls(Contestant):
    "A layer below the epoch: `f` is called with each batch's indices"
    def __init__(self, name, f, work, note=''):
        super().__init__(name, note=note)
        self.f,self.work = f,work

    def epoch(self):
        n = len(self.work.files)
        for idxs in chunked(np.random.permutation(n-1).tolist(), self.work.bs, drop_last=True): self.f(idxs)
        return (n-1)//self.work.bs*self.work.bs

def gather_alone(dl, work):
    "`cache.gather` of the first image column, at crops that are drawn before"
    column = first(dl.columns.values())
    pcts = [(random.random(),random.random()) for _ in range(work.bs)]
    def f(idxs): return dl.cache.gather(column.places[idxs], file_of=lambda i: column.file(idxs[i]), recipe=column.recipe, pcts=pcts,
                                        size=(work.px,work.px))
    return Calls('cache.gather', f, work, 'places and crops to pixels')

def layers(work, tmp):
    "From the floor up"
    pixels,dls = Pixels(work, tmp),warm_dls(stock_dls(work))
    floats = warm_dls(stock_dls(work, image_block=ImageBlock, batch_tfms=[Normalize.from_stats(*imagenet_stats)]))
    Contestant('one epoch first', dls.train).epoch()
    return [memcpy(pixels, 1), memcpy(pixels, 2), bare_gather(pixels), gather_alone(dls.train, work),
            Calls('gather_batch', lambda idxs: dls.train.gather_batch(dls.train.draw_batch(idxs)), work, 'crops, gather, labels'),
            Contestant('epoch', dls.train, "fastai's TfmdDL, num_workers=0"),
            Contestant('epoch, float and normalized', floats.train, 'IntToFloatTensor and Normalize after it')]

def run(
    works:list, # Photos first
    tmp, # Folder for files
    runs:int,
)->dict: # For the JSON file
    "The layers of warm photos"
    work = works[0]
    results = interleave(layers(work, tmp), runs)
    for o in results: o['ns_per_image'] = None if 'error' in o else o['s_per_image']*1e9
    return dict(work=work.name, n_files=len(work.files), bytes_per_image=3*work.px**2, layers=results)
