"The commands, as a user types them"
import subprocess, sys
from pathlib import Path

import pytest
from fastai.vision.all import *
from fastmem.cli import *
from helpers import photo_folder

def run(name, *args):
    return subprocess.run([Path(sys.executable).parent/name, *map(str,args)], capture_output=True, text=True)

def test_plan(tmp_path):
    photo_folder(tmp_path, 12)
    res = run('fastmem-plan', tmp_path, '--size', 224, '--limit-mb', 1)
    assert res.returncode==0 and '12 images' in res.stdout and 'limit_bytes' in res.stdout and 'host RAM' in res.stdout
    assert 'resized' in res.stdout and 'decoded' in res.stdout and 'read the rest from disk' in res.stdout

def test_plan_decodes_nothing(tmp_path):
    for o in photo_folder(tmp_path, 12): o.write_bytes(o.read_bytes()[:1500])  # headers without pixels
    res = run('fastmem-plan', tmp_path)
    assert res.returncode==0 and 'keep every image' in res.stdout

@pytest.mark.parametrize('name', ['fastmem-plan','fastmem-demo'])
def test_a_wrong_folder_is_one_line(tmp_path, name):
    args = [tmp_path/'nowhere'] if name=='fastmem-plan' else ['--path', tmp_path/'nowhere']
    res = run(name, *args)
    assert res.returncode==1 and f'{name}: no folder' in res.stderr and 'Traceback' not in res.stderr

def test_demo_on_class_folders(tmp_path, capsys):
    photo_folder(tmp_path, 60)
    runs = run_demo(tmp_path, runs=1, size=32, bs=8, workers=0)
    table = demo_report(runs, 60)
    assert [o.what.split(',')[0] for o in runs]==['stock fastai']+['fastmem']*4
    assert runs[1].ram_bytes>0 and runs[-1].ram_bytes==pytest.approx(-runs[1].ram_bytes, rel=.3)
    assert 'images/s' in table and '1.0x' in table and '%' in table
    assert len(list(tmp_path.rglob('*.jpg')))==60, 'no file of the user is touched'
