"`store='encoded'`: files as they are, in memory"
import shutil, threading

import pytest
from fastai.vision.all import *
from fastmem.all import *
from helpers import Inverted, batches, photo_folder, random_states

def make(path, item_tfms=Resize(64), blocks=(ImageBlock,CategoryBlock), get_y=parent_label, workers=0):
    set_seed(0)
    block = DataBlock(blocks, get_items=get_image_files, get_y=get_y, splitter=RandomSplitter(seed=1), item_tfms=item_tfms)
    return block.dataloaders(path, bs=4, num_workers=workers, device='cpu')

tfms = dict(crop=Resize(64), squish=Resize(64, method='squish'), pad=Resize(64, method='pad'), rrc=RandomResizedCrop(64), flip=[FlipItem(), Resize(64)], unknown=[Inverted(), Resize(64)])

@pytest.mark.parametrize('what', tfms)
def test_encoded_is_bit_identical(tmp_path, what):
    "Cold and warm, with the same random numbers, the folder gone after the first epoch"
    files = photo_folder(tmp_path/'a', 12, size=(120,90))
    stock = make(tmp_path/'a', tfms[what]); a = batches(stock, 2); state = random_states()
    ours = make(tmp_path/'a', tfms[what]).in_memory(store='encoded')
    assert ours.memory.store=='encoded'
    b = batches(ours, 1)
    size = sum(o.stat().st_size for o in files)
    assert ours.memory.n_cached==len(files) and ours.memory.cached_bytes==size
    shutil.rmtree(tmp_path/'a')
    b += batches(ours, 1)
    assert random_states()==state and ours.memory.misses==len(files)
    for x,y in zip(L(a).concat().concat(), L(b).concat().concat()): assert all(type(p) is type(q) and torch.equal(p, q) for p,q in zip(x,y))

def test_workers_fill_it_and_masks_too(tmp_path):
    files = photo_folder(tmp_path/'a', 12, size=(120,90), ext='png')
    dls = make(tmp_path/'a', Resize(32), (ImageBlock,MaskBlock), noop, workers=2).in_memory(store='encoded')
    for dl in dls.loaders:
        for _ in dl: pass
    shutil.rmtree(tmp_path/'a')
    for dl in dls.loaders:
        for _ in dl: pass
    assert dls.memory.n_cached==2*len(files)
    dls.train.cache.check()

def test_a_bad_file_says_its_name_as_in_stock(tmp_path):
    files = photo_folder(tmp_path, 12, size=(60,50))
    dls = make(tmp_path).in_memory(store='encoded')
    files[3].write_bytes(b'no image')
    with pytest.raises(Exception) as stock: PILImage.create(files[3])
    with pytest.raises(type(stock.value), match='003.jpg'): batches(dls)

def test_purged_while_it_is_read(tmp_path):
    photo_folder(tmp_path, 24, size=(60,50))
    dls = make(tmp_path).in_memory(store='encoded', mode='preload')
    want = [x for x,_ in dls.valid]
    stop = threading.Event()
    def purge():
        while not stop.wait(.002): dls.train.cache.purge()
    t = threading.Thread(target=purge); t.start()
    try:
        for _ in range(20): assert all(torch.equal(x, y) for x,(y,_) in zip(want,dls.valid))
    finally: stop.set(); t.join()

def test_what_can_not_be_encoded(tmp_path):
    photo_folder(tmp_path, 4, size=(60,50))
    with pytest.raises(ValueError, match='size=32'): make(tmp_path).in_memory(store='encoded', size=32)

def test_auto_names_encoded_where_all_files_would_fit(tmp_path, capsys):
    "Pixels of a part are kept; one line says what would keep all"
    files = photo_folder(tmp_path, 24, size=(120,90))
    limit_bytes = 20*sum(o.stat().st_size for o in files)
    dls = make(tmp_path, Resize(160)).in_memory(guard=MemoryGuard(limit_bytes=limit_bytes))
    batches(dls)
    out = capsys.readouterr().out
    assert dls.memory.store=='resized' and 0<dls.memory.cached_frac<1 and "or store='encoded' (" in out
