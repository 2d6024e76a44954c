"What tests share: small images on disk, the batches of a run, and how alike two of them are"
import json, os, random, subprocess, sys
from contextlib import contextmanager
from functools import lru_cache

from fastai.vision.all import *
from sklearn.datasets import load_sample_images

@lru_cache
def _photos(): return [Image.fromarray(o) for o in load_sample_images().images]

def photo(i=0, size=(500,375)):
    "A photo of `size` (width, height), another for each `i`; larger than the sample (640, 427) it is scaled up, with noise"
    im,rng = _photos()[i%2],np.random.default_rng(i)
    if size[0]>im.width or size[1]>im.height:
        a = np.asarray(im.resize(size, Image.Resampling.BICUBIC)) + rng.normal(0, 4, (*size[::-1],3))
        return Image.fromarray(a.clip(0,255).astype(np.uint8))
    x,y = rng.integers(0, im.width-size[0]+1),rng.integers(0, im.height-size[1]+1)
    return im.crop((x, y, x+size[0], y+size[1]))

def photo_folder(path, n, size=(500,375), classes=('a','b','c'), ext='jpg', **save):
    "`n` photos of about `size` in a folder per class below `path`, each named by its number; the paths in order"
    files = [Path(path)/classes[i%len(classes)]/f'{i:03}.{ext}' for i in range(n)]
    for i,o in enumerate(files):
        o.parent.mkdir(parents=True, exist_ok=True)
        photo(i, (size[0]-size[0]*(i%5)//20, size[1]-size[1]*(i%4)//15)).save(o, **save)
    return files

def gradient(size):
    "An image of `size` (width, height) whose red says how far right a pixel is, 0 to 255, and whose green how far down"
    x,y = (np.linspace(0, 255, n) for n in size)
    r,g = np.meshgrid(x, y)
    return Image.fromarray(np.stack([r, g, np.zeros_like(r)], -1).round().astype(np.uint8))

def psnr(a, b, peak=255):
    "Peak signal-to-noise ratio in dB over all values of `a` and `b`"
    mse = np.square(np.asarray(a, dtype=float)-np.asarray(b, dtype=float)).mean()
    return 10*np.log10(peak**2/mse) if mse else np.inf

def batches(dls, n_epochs=1):
    "[epoch][train or valid][batch], as the loaders of `dls` give them"
    return [[list(dl) for dl in dls.loaders] for _ in range(n_epochs)]

def random_states():
    "What all random numbers that fastai draws from now on depend on, to be compared"
    return random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()

class Inverted(RandTransform):
    "A random item transform that fastmem does not know"
    def encodes(self, x:PILImage): return PILImage(x.point(lambda o: 255-o)) if random.random()<.5 else x

_here = Path(__file__).resolve().parent
environ = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': f'{_here}:{_here.parent}'}
environ.pop('PYTHONDONTWRITEBYTECODE', None)  # compiling fastai and torch anew takes each program 10 s

def run_program(tmp_path, code, *args, timeout_s=300):
    "Run `code` with `args` in a Python of its own, which has to end well; what it printed"
    with _program(tmp_path, code) as program:
        res = subprocess.run([sys.executable, '-W', 'ignore', program, *args], capture_output=True, text=True, timeout=timeout_s, env=environ)
    assert res.returncode==0, res.stdout+res.stderr
    return res.stdout

@contextmanager
def _program(tmp_path, code):
    program = tmp_path.parent/f'{tmp_path.name}.py'  # a file, for spawned workers to import
    program.write_text(code)
    try: yield program
    finally: program.unlink()

@lru_cache
def _ready():
    program = Path(__file__).with_name('ready.py')
    return subprocess.Popen([sys.executable, '-W', 'ignore', program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)

def run_forked(tmp_path, code, *args, folder='.', timeout_s=300, status=0):
    "As `run_program`, sooner, where it does not matter that fastai is imported already and that memory is shared with a parent; it has to end with `status`, and errors are in what it printed, too"
    out = tmp_path/'printed'
    with _program(tmp_path, code) as program:
        print(json.dumps(dict(argv=[str(o) for o in (program,*args)], out=str(out), folder=str(folder), timeout_s=timeout_s)), file=_ready().stdin, flush=True)
        ended = int(_ready().stdout.readline())
    assert ended==status, f'{ended}: {out.read_text()}'
    return out.read_text()

command = """
import sys
from importlib.metadata import entry_points
sys.argv = sys.argv[1:]
(program,) = entry_points(group='console_scripts', name=sys.argv[0])
sys.exit(program.load()())
"""

def run_command(tmp_path, name, *args, **kwargs):
    "Run the command `name` as it is typed, as `run_forked` does"
    return run_forked(tmp_path, command, name, *args, **kwargs)
