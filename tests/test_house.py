"The house: imports go one way, the notebooks run, functions stay small"
import ast, re, subprocess, sys, tokenize
from collections import Counter
from pathlib import Path

import pytest
from helpers import run_forked

root = Path(__file__).parents[1]
house = ['guard','opener','recipe','plan','arena','ranks','pixel_file','batch_memory','threads','cache','columns','batch','messages','loader','api',
         'learner','v1_words','image_list','label_list','watch','dataset','bench','cli']

def imports(path):
    "Names of the fastmem modules that a module imports, wherever in it the import stands"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('fastmem'): yield node.module.partition('.')[2] or 'fastmem'
        if isinstance(node, ast.ImportFrom) and node.level: yield node.module or '.'
        if isinstance(node, ast.Import): yield from (o.name.partition('.')[2] for o in node.names if o.name.startswith('fastmem'))

@pytest.mark.parametrize('name', [o for o in house if (root/f'fastmem/{o}.py').exists()])
def test_a_module_imports_only_from_those_above_it(name):
    above = house[:house.index(name)]
    if name in ('bench','cli'): above = above+['all']
    if name=='cli': above = above+['.']  # its version
    assert set(imports(root/f'fastmem/{name}.py')) <= set(above)

@pytest.mark.parametrize('name', [o for o in house if o not in ('arena','ranks','pixel_file','cache')])
def test_only_the_cache_names_the_arena(name): assert not re.search(r'\.arena\b(?! import)', (root/f'fastmem/{name}.py').read_text())

def test_nobody_else_touches_what_the_arena_shares():
    "Its header, and the table that slots are found by"
    found = [o.stem for o in (root/'fastmem').glob('*.py') if o.stem!='arena' and '.header[' in o.read_text()]
    assert not found

def test_every_module_has_its_place():
    modules = {o.stem for o in (root/'fastmem').glob('*.py')}-{'__init__','_modidx','all'}
    assert modules <= set(house)

def n_tokens(path):
    "{line: tokens of code in it}"
    kinds,counts = (tokenize.NAME,tokenize.OP,tokenize.NUMBER,tokenize.STRING),Counter()
    with open(path, 'rb') as f:
        for o in tokenize.tokenize(f.readline):
            is_docstring = o.type==tokenize.STRING and ('\n' in o.string or o.line.strip()==o.string)
            if o.type in kinds and not is_docstring: counts[o.start[0]] += 1
    return counts

def test_lines_are_neither_long_nor_full():
    "At most 3 % of lines have more than 30 tokens, at most 1 % more than 120 characters, none of ours 140"
    paths = [o for o in (root/'fastmem').glob('*.py') if o.stem not in ('_modidx','all','__init__')]
    lines = [line for o in paths for line in o.read_text().splitlines()]
    tokens = [n for o in paths for n in n_tokens(o).values()]
    assert max(map(len, lines))<=140
    assert sum(len(o)>120 for o in lines)<=.01*len(lines)
    assert sum(n>30 for n in tokens)<=.03*len(tokens)

def test_nothing_is_printed_at_import():
    code = 'import fastai.vision.all, sys; print("---"); sys.stdout.flush(); import fastmem.all, fastmem.cli'
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert res.returncode==0 and res.stdout.split('---\n')[1]==''

def test_only_our_own_names_are_patched():
    "What fastmem adds to classes of others is what the contract names"
    code = '''
from fastai.vision.all import *
import PIL.Image
classes = [DataLoaders, TfmdDL, DataLoader, DataBlock, Datasets, TfmdLists, Learner, PIL.Image.Image, Resize, Transform, Pipeline]
before = {c: dict(vars(c)) for c in classes}
import fastmem.all, fastmem.cli
for c in classes:
    after = vars(c)
    assert all(after[k] is v for k,v in before[c].items()), c
    new = set(after)-set(before[c])
    ours = {DataLoaders: {'in_memory','preload','purge','memory','refresh','normalize'}, Learner: {'memory_plan','data'}}
    assert new<=ours.get(c, set()), (c,new)
'''
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)

@pytest.mark.parametrize('nb', sorted(str(o.relative_to(root)) for o in (root/'nbs').rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(root).parts)))
def test_notebook(tmp_path, nb): run_forked(tmp_path, 'from nbdev.test import nbdev_test; nbdev_test()', nb, folder=root)
