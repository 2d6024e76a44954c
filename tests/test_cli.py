"The commands, as a user types them"
import subprocess, sys
from pathlib import Path

import pytest
from fastai.vision.all import *
from fastmem.all import probe
from fastmem.bench import *
from fastmem.cli import *
from helpers import environ, photo_folder, run_command

commands = ['fastmem-plan','fastmem-bench','fastmem-demo','fastmem-cache']

def run(name, *args):
    "In a Python of its own: what came back"
    return subprocess.run([Path(sys.executable).parent/name, *map(str,args)], capture_output=True, text=True, env=environ)

without_fastai = """
import sys, warnings
warnings.simplefilter('error')
import fastmem.cli
sys.argv = sys.argv[1:]
code = 0
try: getattr(fastmem.cli, sys.argv[0].replace('-','_'))()
except SystemExit as e: code = e.code
print('exit', code, 'heavy', [o for o in ('torch','fastai') if o in sys.modules])
"""

def answer(tmp_path, *args):
    "What a command prints, its exit code, and which heavy packages it imported"
    program = tmp_path/'answer.py'
    program.write_text(without_fastai)
    return subprocess.run([sys.executable, program, *map(str,args)], capture_output=True, text=True, env=environ)

@pytest.mark.parametrize('name', commands)
def test_help_version_and_errors_need_no_fastai(tmp_path, name):
    for option,code,said in (('-h',0,'usage:'), ('--version',0,'fastai-fastmem 0.'), ('--nonsense',2,'usage:'), (tmp_path/'nowhere',None,'')):
        args = ['ls', option] if name=='fastmem-cache' and code is None else [option]
        res = answer(tmp_path, name, *args)
        assert res.stdout.endswith("heavy []\n") and said in res.stdout+res.stderr and 'Traceback' not in res.stderr
        if code is None: assert f'exit {name}: no folder {tmp_path/"nowhere"}' in res.stdout
        else: assert f'exit {code}' in res.stdout

def test_plan(tmp_path):
    photo_folder(tmp_path, 12)
    res = run('fastmem-plan', tmp_path, '--size', 224, '--limit-mb', 1)
    assert res.returncode==0 and not res.stderr, 'no warning of another package on the screen'
    assert 'images     12' in res.stdout and 'limit_bytes' in res.stdout and 'host RAM' in res.stdout
    assert all(o in res.stdout for o in ('resized','decoded','encoded','read from disk','s with'))

def test_plan_names_what_it_cant_read(tmp_path):
    files = photo_folder(tmp_path, 6)
    for o in files[:2]: o.write_bytes(o.read_bytes()[:1500])  # headers without pixels
    out = run_command(tmp_path, 'fastmem-plan', tmp_path)
    assert "2 can't be read" in out and str(files[0]) in out and str(files[1]) in out and 'images     6' in out
    for o in files: o.write_text('no image')
    assert 'fastmem-plan: none of 6 images can be read' in run_command(tmp_path, 'fastmem-plan', tmp_path, status=1)

@pytest.mark.parametrize('name', commands[:3])
def test_a_folder_without_images_is_one_line(tmp_path, name):
    (empty := tmp_path/'empty').mkdir()
    out = run_command(tmp_path, name, empty, status=1)
    assert f'{name}: no images in' in out and 'Traceback' not in out

def test_demo_on_class_folders(tmp_path, capsys):
    photo_folder(tmp_path, 24)
    fastmem_demo(tmp_path, size=32, bs=8, workers=0)
    out = capsys.readouterr().out
    assert '4 of 4 batches are equal' in out, "store='decoded' gives stock's batches"
    assert 'images/s' in out and '1.0x' in out
    assert len(list(tmp_path.rglob('*.jpg')))==24, 'no file of the user is touched'

def test_a_purge_gives_back_what_the_demo_took(tmp_path):
    photo_folder(tmp_path, 20)
    runs,_ = run_demo(tmp_path, runs=1, size=32, bs=8, workers=0)
    assert runs[1].ram_bytes>0 and runs[-1].ram_bytes==pytest.approx(-runs[1].ram_bytes, rel=.3)

def test_bench_as_it_is_typed(tmp_path):
    photo_folder(tmp_path/'images', 40)
    res = run('fastmem-bench', tmp_path/'images', '--size', 32, '--bs', 8, '--runs', 1, '--arch', 'none', '--n', 30,
              '--workers', 0, 1, '--plot', tmp_path/'bench.png')
    assert res.returncode==0 and 'FutureWarning' not in res.stderr, res.stderr
    assert '30 of 40 images' in res.stdout and '40 images, ' in res.stdout and 'waits for its images' in res.stdout
    assert res.stdout.count('1.0x')>=2 and res.stdout.count('100%')==7
    assert Image.open(tmp_path/'bench.png').size>(100,100)
    assert len(list((tmp_path/'images').rglob('*')))==43, 'no file of the user is touched, none is added'

def bench(path, **kwargs):
    "The command as a function, small and without a model unless `kwargs` says so"
    fastmem_bench(path, **{**dict(size=32, bs=8, workers=[0], runs=1, arch='none'), **kwargs})

def test_bench_on_any_folder(tmp_path, capsys):
    "Flat, with a folder in it, and with a file that is no image and one whose pixels are missing"
    photo_folder(tmp_path, 12, classes=('','below'))
    (tmp_path/'text.jpg').write_text('no image')
    (tmp_path/'000.jpg').write_bytes((tmp_path/'000.jpg').read_bytes()[:1500])
    bench(tmp_path)
    out = capsys.readouterr().out
    assert 'Measured on 11 of 13 images' in out and "2 can't be read: " in out and 'text.jpg' in out and '000.jpg' in out

def test_bench_keeps_what_the_whole_folder_could(tmp_path, capsys):
    photo_folder(tmp_path, 40)
    total_bytes = probe(tmp_path, size=128).total_bytes
    bench(tmp_path, size=128, n=30, limit_mb=total_bytes//2_000_000)
    kept = [int(o.split()[-1][:-1]) for o in capsys.readouterr().out.splitlines() if o.startswith('fastmem, ') and o.endswith('%')]
    assert len(kept)==3 and all(20<o<80 for o in kept)

def test_bench_with_a_model(tmp_path, capsys):
    photo_folder(tmp_path, 6)
    bench(tmp_path, arch='resnet18')
    assert 'resnet18 on ' in capsys.readouterr().out
    bench(tmp_path, model_images_per_s=1e6)
    assert 'Loading is your bottleneck: your model trains 1,000,000 images/s' in capsys.readouterr().out

@pytest.mark.parametrize('wrong,error', [(dict(workers=[0,-1]),'--workers must be 0 or more, not -1'), (dict(bs=0),'--bs must be 1 or more'),
                                         (dict(limit_mb=0),'--limit-mb must be 1 or more'), (dict(arch='resnet19'),'no architecture resnet19')])
def test_bench_says_what_is_wrong(tmp_path, wrong, error):
    photo_folder(tmp_path, 2)
    with pytest.raises(SystemExit, match=f'fastmem-bench: {error}'): bench(tmp_path, **wrong)

def test_bench_without_a_readable_image(tmp_path):
    (tmp_path/'text.jpg').write_text('no image')
    with pytest.raises(SystemExit, match='fastmem-bench: none of 1 images can be read'): bench(tmp_path)

def test_a_chart_that_cant_be_written_is_said_after_the_table(tmp_path, capsys):
    photo_folder(tmp_path, 6)
    for name in ('nowhere/bench.png','bench.noformat'):
        with pytest.raises(SystemExit, match='fastmem-bench: no chart in'): bench(tmp_path, plot=tmp_path/name)
        assert 'images/s' in capsys.readouterr().out

def test_verdicts():
    "Turns without workers, side by side with them; a warm fastmem takes turns"
    def measured(rate, workers=0, warm=False): return Measured('fastmem, warm epoch' if warm else 'stock fastai', 100, [100/rate], workers=workers, cached_frac=float(warm))
    assert epoch_estimate_s(measured(100), 1000, 500)==pytest.approx(12)
    assert epoch_estimate_s(measured(100, 2), 1000, 500)==pytest.approx(10)
    assert epoch_estimate_s(measured(100, 2, warm=True), 1000, 500)==pytest.approx(12)
    runs = [measured(300), measured(400, 2), measured(40000, warm=True)]
    assert verdict(runs, 1000, 'x', 900).startswith('Loading is your bottleneck') and 'num_workers=2' in verdict(runs, 1000, 'x', 900)
    assert verdict(runs[::2], 1000, 'x', 200).startswith('Training is slower than loading, but waits')
    assert verdict(runs, 1000, 'x', 10).startswith('Loading is not your bottleneck')
    assert 'more than 400 images/s' in verdict(runs, 1000)

def test_cache_lists_and_removes_without_fastai(tmp_path):
    files = photo_folder(tmp_path/'images', 6)
    one_pass(stock_dls(files, size=32, workers=0).in_memory(path=tmp_path/'cache'))
    res = answer(tmp_path, 'fastmem-cache', 'ls', tmp_path/'cache')
    assert '32x32' in res.stdout and 'PILImage crop' in res.stdout and "'fastai'" not in res.stdout
    assert '1 removed' in answer(tmp_path, 'fastmem-cache', 'rm', tmp_path/'cache').stdout
    assert 'no pixel files in' in answer(tmp_path, 'fastmem-cache', 'ls', tmp_path/'cache').stdout

def test_cache_has_the_folder_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(SystemExit, match=f'no folder {tmp_path}/.cache/fastmem'): fastmem_cache('ls')
