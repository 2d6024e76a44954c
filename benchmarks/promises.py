"Any pipeline, any sequence of changes: every batch is stock's. fp or python benchmarks/promises.py --n 2000"
import gc, sys, time, warnings
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]/'tests'))

from hypothesis import Phase, given, seed as seed_of, settings
from fastcore.script import call_parse
from test_pipelines import *

@call_parse
def main(
    n:int=2000, # Sequences
    seed:int=0, # Of what is drawn
    workers:int=0, # Of the loaders
):
    "Compare sequences of changes and epochs with stock, and print each that differs"
    warnings.filterwarnings('ignore')
    gc.collect(); gc.freeze(); torch.set_num_threads(1)
    errors,start_s,n_run = [],time.perf_counter(),0
    @seed_of(seed)
    @settings(max_examples=n, phases=[Phase.generate], **quietly)
    @given(sequences(workers=(workers,)))
    def check(sequence):
        nonlocal n_run
        n_run += 1
        try: run_sequence(*sequence)
        except Exception as e: errors.append(e); print(f'{type(e).__name__}: {str(e)[:300]}', getattr(e, 'steps', ''), sep='\n  ', flush=True)
    check()
    print(f'{n_run} sequences in {time.perf_counter()-start_s:.0f} s, {len(errors)} differ from stock')
    if errors: sys.exit(1)
