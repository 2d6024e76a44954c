"All benchmarks: python benchmarks/run.py --photos DIR --cifar DIR"
import os
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')  # loading is what is measured, on the CPU
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import tempfile, warnings
from importlib import import_module

from data import *
from fastcore.script import call_parse
from machine import *

parts = 'peers,targets,layers,memory,scale,plan,dataset'

def run_part(name, works, tmp, out, **kwargs):
    "Run one module, and write what it returns"
    where,start_s = machine(),time.perf_counter()
    print(f'{name} …', flush=True)
    results = import_module(name).run(works, tmp, **kwargs)
    write_results(out, name, where, time.perf_counter()-start_s, **kwargs, **results)
    print(f'{name}: {time.perf_counter()-start_s:.0f} s', flush=True)

@call_parse
def main(
    photos:str=None, # Folder of JPEGs, ImageNet like
    cifar:str=None, # Folder of classes of small PNGs, all of one size
    runs:int=5, # Of each contestant, in turns
    only:str=parts, # Parts to run, with commas
    out:str=str(Path(__file__).parent/'results'), # Folder of the JSON files
    limit:int=5000, # The most files to take of each folder
    copies:int=2, # Paths that each photo is loaded under: few photos would fit a processor's cache
):
    "Run the benchmarks and write their timings as JSON"
    if photos is None or cifar is None: raise SystemExit('both --photos and --cifar are needed')
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as tmp:
        works = [Work('photos', copied_files(some_files(photos, limit), photos, tmp, copies), 224), Work('cifar', some_files(cifar, limit))]
        for name in only.split(','): run_part(name, works, tmp, out, runs=runs)
