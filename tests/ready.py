"A Python that has imported fastai, and runs each program that it is told of in a fork: most of what a small program takes is that import"
import json, os, runpy, signal, sys

import fastai.vision.all

for line in sys.stdin:
    asked = json.loads(line)
    if os.fork()==0: break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else: sys.exit()

signal.alarm(asked['timeout_s'])
os.dup2(os.open(asked['out'], os.O_WRONLY|os.O_CREAT|os.O_TRUNC), 1); os.dup2(1, 2)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.chdir(asked['folder'])
sys.argv = asked['argv']
runpy.run_path(sys.argv[0], run_name='__main__')
