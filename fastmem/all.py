"What notebooks use of fastmem, to be imported after `fastai.vision.all`"
from fastmem.guard import MemoryGuard, available_memory, memory_limits, shared_guard, total_memory, human_bytes
from fastmem.plan import MemoryPlan, Recipe, probe
from fastmem.arena import Arena
from fastmem.cache import ImageCache
from fastmem.block import MemDL, MemImageBlock, MemMaskBlock
from fastmem.loader import CacheStats
from fastmem.learner import MemoryCallback
from fastmem.image_list import (CategoryList, DatasetType, FloatList, GANItemList, ImageList, ImageListInMemory, ItemLists, LabelLists, MemoryImageList,
                                MultiCategoryList, ObjectItemList, PointsItemList, SegmentationItemList, SegmentationLabelList,
                                ImageDataBunch, ImageImageList, get_transforms, open_image, open_mask)
from fastmem.dataset import CachedDataset, cached

__all__ = ['MemoryGuard', 'available_memory', 'memory_limits', 'shared_guard', 'total_memory', 'human_bytes', 'MemoryPlan', 'Recipe', 'probe',
           'Arena', 'ImageCache', 'MemDL', 'MemImageBlock', 'MemMaskBlock', 'CacheStats', 'MemoryCallback', 'CategoryList', 'FloatList',
           'GANItemList', 'ImageList', 'ImageListInMemory', 'ItemLists', 'LabelLists', 'MemoryImageList', 'MultiCategoryList',
           'SegmentationLabelList', 'CachedDataset', 'cached',
           'DatasetType', 'ImageDataBunch', 'ImageImageList', 'ObjectItemList', 'PointsItemList', 'SegmentationItemList',
           'get_transforms', 'open_image', 'open_mask']
