"Bytes of a process and its children, and measurements in processes of their own"
import ctypes, gc, json, os, subprocess, sys
from pathlib import Path

import psutil

def memfds(
    pid:int,
)->dict: # {inode: bytes in memory}
    "The memfds that a process has open"
    res = {}
    for fd in Path(f'/proc/{pid}/fd').iterdir():
        try:
            if os.readlink(fd).startswith('/memfd:'): stat = fd.stat(); res[stat.st_ino] = stat.st_blocks*512
        except FileNotFoundError: pass  # closed meanwhile
    return res

in_memory = '/memfd:','/dev/shm/','/dev/zero','/SYSV'

def mappings(
    pid:int,
)->list: # (inode, proportional bytes)
    "What a process has mapped, but for files on disk: libraries are the same with and without a cache"
    for line in Path(f'/proc/{pid}/smaps').read_text().splitlines():
        parts = line.split()
        if not parts[0].endswith(':'): inode,on_disk = int(parts[4]),int(parts[4])>0 and not parts[5].startswith(in_memory)
        elif parts[0]=='Pss:' and not on_disk: yield inode,int(parts[1])*1024

def memfd_bytes()->int:
    "What this process's memfds hold, mapped or not"
    return sum(memfds(os.getpid()).values())

def tree_bytes(
    pid:int=None, # This process if `None`
)->int:
    "Proportional set size of a process and its children without libraries; a memfd counts once, with all it holds"
    total,files,root = 0,{},psutil.Process(pid)
    for o in [root, *root.children(recursive=True)]:
        try:
            files.update(memfds(o.pid))
            total += sum(n for inode,n in mappings(o.pid) if inode not in files)
        except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess): pass  # a worker that ended
    return total+sum(files.values())

def settle():
    "Give back what Python and malloc hold and nobody uses"
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)

def measure(
    script:str, # With a main part that prints JSON last
    *args
)->dict:
    "What `script` prints in a process of its own"
    res = subprocess.run([sys.executable, '-W', 'ignore', script, *map(str, args)], capture_output=True, text=True)
    if res.returncode: raise RuntimeError(res.stderr.strip()[-2000:])
    return json.loads(res.stdout.strip().splitlines()[-1])
