"Where and how results were made, and the files they are written to"
import datetime, json, os, platform, shlex, subprocess, sys
from importlib.metadata import PackageNotFoundError, version

import psutil
from fastcore.all import *

packages = 'fastai-fastmem torch torchvision fastai pillow numpy stocaching monai datasets tensordict ffcv'.split()

def package_version(
    name:str, # On PyPI
)->str: # `None` if it is not installed
    try: return version(name)
    except PackageNotFoundError: return None

def cpu_model()->str:
    "As Linux names it"
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return first(o.split(':')[1].strip() for o in lines if o.startswith('model name')) or platform.processor()

def git_commit()->str:
    "Commit of fastmem, with a + if files differ from it"
    def git(*args): return subprocess.run(['git', *args], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain', '--untracked-files=no') else '')

def machine()->dict:
    "Hardware and versions"
    return dict(cpu=cpu_model(), cores=len(os.sched_getaffinity(0)), ram_bytes=psutil.virtual_memory().total,
                system=platform.platform(), python=platform.python_version(), load_1min=os.getloadavg()[0],
                versions={o: package_version(o) for o in packages}, fastmem_commit=git_commit())

def command()->str:
    "What was typed"
    return shlex.join(['python', *sys.argv])

def write_results(
    out, # Folder
    part:str, # Name of the file
    machine:dict, # At the start
    took_s:float,
    **results
):
    "`results` as JSON, with machine, date and command"
    Path(out).mkdir(parents=True, exist_ok=True)
    about = dict(command=command(), date=datetime.datetime.now().isoformat(timespec='seconds'), took_s=took_s, machine=machine)
    (Path(out)/f'{part}.json').write_text(json.dumps({**about, **results}, indent=1, ensure_ascii=False)+'\n')
