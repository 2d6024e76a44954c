"Pages as a reader meets them: each has its place in the sidebar, tutorials open in Colab, anchors stay"
import ast, json, re
from pathlib import Path

import pytest
import yaml
from fastmem.guard import doctor

nbs = Path(__file__).parents[1]/'nbs'
tutorials = sorted((nbs/'tutorials').glob('*.ipynb'))
pages = [*tutorials, nbs/'doctor.ipynb', nbs/'reference.ipynb', nbs/'explanations/what_is_cached.ipynb']
each_page = pytest.mark.parametrize('page', pages, ids=lambda o: o.stem)
each_tutorial = pytest.mark.parametrize('page', tutorials, ids=lambda o: o.stem)

doctor_anchors = '''ram-climbs killed first-epoch second-epoch item-by-item gpu-idle hit-rate not-found-again changed-files docker colab
    kaggle windows-macos full path unreadable not-kept faq limit'''.split()

def cells(page): return json.loads(page.read_text())['cells']
def source(cell): return ''.join(cell['source'])

def output_text(page):
    for output in [o for cell in cells(page) for o in cell.get('outputs', [])]:
        yield ''.join(output.get('text') or output.get('data', {}).get('text/plain', ''))

def in_sidebar(contents):
    for o in contents: yield from in_sidebar(o['contents']) if isinstance(o, dict) else [o]

def test_the_sidebar_has_every_page_once():
    listed = list(in_sidebar(yaml.safe_load((nbs/'sidebar.yml').read_text())['website']['sidebar']['contents']))
    assert sorted(listed)==sorted(o.relative_to(nbs).as_posix() for o in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)

class NoTwice(yaml.SafeLoader):
    "Quarto refuses a key that is given twice, PyYAML takes the last"
    def construct_mapping(self, node, deep=False):
        keys = [k.value for k,_ in node.value]
        assert len(keys)==len(set(keys)), keys
        return super().construct_mapping(node, deep)

def test_settings_of_the_site_are_given_once():
    for o in nbs.glob('*.yml'): yaml.load(o.read_text(), NoTwice)

@each_page
def test_no_progress_bar_is_left_in_an_output(page):
    assert not any('\r' in text or '█' in text for text in output_text(page))

@each_tutorial
def test_a_tutorial_opens_in_colab_and_installs_fastmem(page):
    title,about,install = map(source, cells(page)[:3])
    assert title.startswith('# ') and f'/fastmem/blob/main/nbs/tutorials/{page.name})' in about
    assert install.startswith('#| eval: false\n') and 'pip install' in install

def test_the_doctor_keeps_its_anchors():
    text = '\n'.join(source(o) for o in cells(nbs/'doctor.ipynb') if o['cell_type']=='markdown')
    assert set(doctor_anchors)<=set(re.findall(r'^#+ .*\{#([\w-]+)\}$', text, flags=re.M))

def linked_entries():
    "Anchors of the doctor page that lines and errors of fastmem end with"
    for node in [o for file in (nbs.parent/'fastmem').glob('*.py') for o in ast.walk(ast.parse(file.read_text()))]:
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') in ('doctor','say'):
            yield from (o.value for o in ast.walk(node.args[-1]) if isinstance(o, ast.Constant) and isinstance(o.value, str))

def test_every_line_of_fastmem_links_to_an_entry_of_the_doctor_page():
    assert doctor('').startswith(re.search(r'^Documentation = "(.+)"', (nbs.parent/'pyproject.toml').read_text(), flags=re.M)[1])
    assert {'full','not-kept','path','unreadable','limit'}<=set(linked_entries())<=set(doctor_anchors)

def test_links_within_a_page_lead_to_an_anchor_of_it():
    for page in pages:
        text = '\n'.join(source(o) for o in cells(page) if o['cell_type']=='markdown')
        assert set(re.findall(r'\]\(#([\w-]+)\)', text))<=set(re.findall(r'\{#([\w-]+)\}', text))
