"Everything fastmem has, to be imported after `fastai.vision.all`"
from fastmem.guard import *
from fastmem.plan import *
from fastmem.arena import *
from fastmem.cache import *
from fastmem.block import *
from fastmem.loader import *
