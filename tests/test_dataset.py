"Samples come back as they were, datasets as PyTorch's loaders see them, and what a cache must refuse"
import copy, enum, gc, io, math, pickle, random, shutil
from collections import namedtuple
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fastai.vision.all import PILImage, PILMask, TensorCategory, TensorImage, TensorMask
from fastmem.all import *
from fastmem.dataset import decode_sample, encode_sample
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from pathlib import Path
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler, Subset, random_split
from torchvision import tv_tensors
from helpers import photo, run_program

# --- a sample round-trips ---

def same(a, b):
    "Whether two samples are equal in every type, bit and name"
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor):
        return (a.dtype,a.shape)==(b.dtype,b.shape) and bits(a)==bits(b) and b.is_contiguous() and same(dict(vars(a)), dict(vars(b)))
    if isinstance(a, (np.ndarray,np.generic)): return a.dtype.str==b.dtype.str and a.shape==b.shape and a.tobytes()==b.tobytes()
    if isinstance(a, Image.Image):
        return ((a.mode,a.size,a.tobytes())==(b.mode,b.size,b.tobytes()) and a.info.get('transparency')==b.info.get('transparency')
                and (a.mode not in ('P','PA') or (a.palette.mode,a.getpalette(None))==(b.palette.mode,b.getpalette(None))))
    if isinstance(a, dict): return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    if isinstance(a, (tuple,list)): return len(a)==len(b) and all(map(same, a, b))
    return a==b or (a!=a and b!=b)

def bits(x): return x.as_subclass(torch.Tensor).contiguous().reshape(-1).view(torch.uint8).tolist()

def back(x): return decode_sample(bytearray(encode_sample(x)))

class Item(NamedTuple):
    x:object
    label:object

class Side(enum.Enum): LEFT,RIGHT = 'l','r'

torch_dtypes = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16,
                torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn]
modes = '1 L P RGB RGBA CMYK LA YCbCr HSV LAB I;16 I F PA'.split()
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
array_dtypes = st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(endianness='?'), hnp.floating_dtypes(endianness='?'), hnp.complex_number_dtypes(),
                         hnp.datetime64_dtypes(), hnp.timedelta64_dtypes(), hnp.unicode_string_dtypes(min_len=1, max_len=4), hnp.byte_string_dtypes(min_len=1, max_len=4))

@st.composite
def tensors(draw):
    "Of any bits, NaNs of all kinds too; with any strides, and of any class"
    dtype,shape = draw(st.sampled_from(torch_dtypes)),draw(shapes)
    n_bytes = torch.empty((), dtype=dtype).itemsize*math.prod(shape)
    raw = bytearray(draw(st.binary(min_size=n_bytes, max_size=n_bytes)))
    if dtype is torch.bool: raw = bytearray(o%2 for o in raw)
    x = torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
    if draw(st.booleans()): x = x.permute(draw(st.permutations(range(x.ndim))))
    if x.ndim and draw(st.booleans()): x = x[::2]
    return x.as_subclass(draw(st.sampled_from([torch.Tensor,TensorImage,TensorMask,TensorCategory,tv_tensors.Mask])))

@st.composite
def images(draw):
    mode,size = draw(st.sampled_from(modes)),(draw(st.integers(0, 9)),draw(st.integers(0, 9)))
    im = Image.new(mode, size)
    if mode in ('P','PA'): im.putpalette(draw(st.binary(min_size=12, max_size=12)), draw(st.sampled_from(['RGB','RGBA'])))
    n = len(im.tobytes())
    im.frombytes(draw(st.binary(min_size=n, max_size=n))) if n else None
    if mode in ('P','RGB','L') and draw(st.booleans()): im.info['transparency'] = draw(st.one_of(st.integers(0, 255), st.binary(max_size=4)))
    return im

arrays = array_dtypes.flatmap(lambda o: hnp.arrays(o, shapes))
np_scalars = hnp.arrays(st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.complex_number_dtypes(), hnp.datetime64_dtypes()), ()).map(lambda o: o[()])
small = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=20), st.sampled_from(Side), st.text().map(np.str_))
leaves = st.one_of(small, tensors(), arrays, np_scalars, images())
keys = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none())
nested = st.recursive(leaves, lambda o: st.one_of(st.lists(o, max_size=3), st.lists(o, max_size=3).map(tuple), st.dictionaries(keys, o, max_size=3), st.builds(Item, o, o)), max_leaves=6)
thorough = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@thorough
@given(nested)
def test_samples_round_trip(sample): assert same(sample, back(sample))

@thorough
@given(tensors())
def test_tensors_round_trip(x): assert same(x, back(x))

@thorough
@given(arrays)
def test_arrays_round_trip(x): assert same(x, back(x))

@thorough
@given(images())
def test_images_round_trip(im): assert same(im, back(im))

@pytest.mark.parametrize('x', [2**64, -10**5000, 1<<63, -(1<<63), math.inf, -math.inf, math.nan, -0., 5e-324, True, '\ud800', '', b'', (), {}, [], None], ids=lambda o: type(o).__name__)
def test_small_things_round_trip(x): assert same(x, back(x)) and (type(x) is not float or repr(x)==repr(back(x)))
