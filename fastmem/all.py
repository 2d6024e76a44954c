"What notebooks use of fastmem, to be imported after `fastai.vision.all`"
from fastmem.guard import MemoryGuard, available_memory, human_bytes, memory_limits, shared_guard, total_memory
from fastmem.recipe import Recipe
from fastmem.plan import MemoryPlan, probe
from fastmem.cache import ImageCache
from fastmem.loader import MemDL
from fastmem.api import CacheStats, MemImageBlock, MemMaskBlock
from fastmem.learner import MemoryCallback
from fastmem.image_list import (CategoryList, DatasetType, FloatList, GANItemList, ImageDataBunch, ImageImageList, ImageList,
                                ImageListInMemory, ItemLists, LabelLists, MemoryImageList, MultiCategoryList, ObjectItemList,
                                PointsItemList, SegmentationItemList, SegmentationLabelList, get_transforms, open_image, open_mask)
from fastmem.dataset import CachedDataset, cached

__all__ = ['MemoryGuard', 'available_memory', 'human_bytes', 'memory_limits', 'shared_guard', 'total_memory', 'Recipe', 'MemoryPlan', 'probe', 'ImageCache', 'MemDL',
           'CacheStats', 'MemImageBlock', 'MemMaskBlock', 'MemoryCallback', 'CategoryList', 'FloatList', 'GANItemList', 'ImageList',
           'ImageListInMemory', 'ItemLists', 'LabelLists', 'MemoryImageList', 'MultiCategoryList', 'SegmentationLabelList',
           'CachedDataset', 'cached', 'DatasetType', 'ImageDataBunch', 'ImageImageList', 'ObjectItemList', 'PointsItemList',
           'SegmentationItemList', 'get_transforms', 'open_image', 'open_mask']
