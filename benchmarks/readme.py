"""What README.md and the site show of the results: python benchmarks/readme.py

It reads `results/targets.json` and writes the table into `nbs/index.ipynb` and the pictures into `nbs/images`: the bar chart,
the image that a shared link shows, and the site's icon. Then `python .ci/docs.py readme` writes README.md."""
import json
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
from fastcore.nbio import read_nb, write_nb

from contest import find

root = Path(__file__).resolve().parents[1]
images = root/'nbs'/'images'
index = root/'nbs'/'index.ipynb'
table_id = '5eed7ab1'  # of the cell that holds the table
blue,gray = '#1f6fb4','#8a8a8a'

def load():
    "The results that are shown"
    return json.loads((root/'benchmarks/results/targets.json').read_text())

# (what is shown, contest, contestant, its `num_workers`, stock's)
rows = [('photos, first epoch', 'photos_half', 'fastmem, first epoch', 2, 2),
        ('photos, every other epoch', 'photos_half', 'fastmem', 2, 2),
        ('photos, `RandomResizedCrop`', 'photos_rrc', 'fastmem', 2, 2),
        ('CIFAR-10, first epoch', 'cifar_first', 'fastmem, first epoch', 2, 2),
        ('CIFAR-10, every other epoch', 'cifar_warm', 'fastmem', 0, 0)]

def rate(result): return 1/result['s_per_image']

def pairs(
    timings:dict, # Of the results
)->list: # (what, stock, fastmem) with the results of one contest
    "What the table compares"
    return [(what, find(timings[contest], 'stock fastai', n_stock), find(timings[contest], name, n)) for what,contest,name,n,n_stock in rows]

def table(results)->str:
    "Images/s of stock and fastmem, and how many times as fast, in Markdown"
    lines = ['| images/s | stock fastai | fastmem | times |', '| --- | --: | --: | --: |']
    for what,stock,ours in pairs(results['timings']):
        times = rate(ours)/rate(stock)
        lines.append(f'| {what} | {rate(stock):,.0f} | {rate(ours):,.0f} | **{times:,.{times<10:d}f}×** |')
    return '\n'.join(lines)

def about(results)->str:
    "Where the numbers come from"
    m = results['machine']
    return (f"Medians of {results['runs']} runs in turns on {m['cores']} cores of an {m['cpu']}, without a GPU, with fastai "
            f"{m['versions']['fastai']}: batches of 64 as uint8, photos resized to 224 pixels, files in the system's cache. "
            'Drawn by `python benchmarks/readme.py` from '
            '[`benchmarks/results`](https://github.com/fastmem/fastmem/tree/main/benchmarks/results).')

def draw(
    ax, # To draw on
    results:dict,
):
    "Images/s on photos, from zero, with the number beside each bar"
    stock,first,warm = [find(results['timings']['photos_half'], o, 2) for o in ('stock fastai','fastmem, first epoch','fastmem')]
    names = ['stock fastai, every epoch','fastmem, first epoch','fastmem, every other epoch']
    rates = [rate(o) for o in (stock,first,warm)]
    bars = ax.barh(names, rates, color=[gray,blue,blue], height=.62)
    ax.bar_label(bars, [f'{o:,.0f} images/s' for o in rates], padding=6)
    ax.set_xlim(0, max(rates)*1.35)
    ax.invert_yaxis()
    ax.xaxis.set_visible(False)
    ax.tick_params(length=0)
    for o in ('top','right','bottom'): ax.spines[o].set_visible(False)

def chart(results):
    "The picture of the README"
    fig,ax = plt.subplots(figsize=(7.6,1.7), layout='constrained')
    draw(ax, results)
    fig.savefig(images/'speed.svg', metadata=dict(Date=None), facecolor='white')

def social(results):
    "What a shared link shows, 1200×630"
    fig = plt.figure(figsize=(12,6.3))
    fig.text(.06, .8, 'fastmem', fontsize=62, weight='bold', color=blue)
    fig.text(.06, .66, 'Keep fastai image datasets in RAM, safely', fontsize=29)
    fig.text(.06, .56, 'dls.in_memory()', fontsize=24, family='monospace', color=gray)
    with plt.rc_context({'font.size': 19}): draw(fig.add_axes((.36,.08,.6,.38)), results)
    fig.savefig(images/'social.png', dpi=100, facecolor='white', metadata=dict(Software=None))

def icon():
    "Four slots of memory, one of them being filled"
    fig = plt.figure(figsize=(.64,.64))
    ax = fig.add_axes((0,0,1,1))
    for i in range(4): ax.add_patch(plt.Rectangle((i%2*.5+.06,i//2*.5+.06), .38, .38, color=blue if i!=1 else '#f4a261'))
    ax.set(xlim=(0,1), ylim=(0,1))
    ax.axis('off')
    fig.savefig(images/'favicon.png', dpi=100, transparent=True, metadata=dict(Software=None))

def write_table(results):
    "Put the table into its cell of the home page"
    nb = read_nb(index)
    cell, = [o for o in nb.cells if o.id==table_id]
    cell.source = f'{table(results)}\n\n{about(results)}'
    write_nb(nb, index)

if __name__=='__main__':
    matplotlib.rcParams.update({'svg.hashsalt': 'fastmem', 'font.size': 11})
    images.mkdir(exist_ok=True)
    results = load()
    for o in (chart,social,write_table): o(results)
    icon()
