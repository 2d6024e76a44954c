"What notebooks use of fastmem, to be imported after `fastai.vision.all`"
from fastmem.guard import MemoryGuard, available_memory, human_bytes, memory_limits, shared_guard, total_memory
from fastmem.recipe import Recipe
from fastmem.plan import MemoryPlan, probe
from fastmem.cache import ImageCache
from fastmem.loader import MemDL
from fastmem.api import CacheStats, MemImageBlock, MemMaskBlock
from fastmem.learner import MemoryCallback
from fastmem.v1_words import (DatasetType, ImageDataBunch, ImageImageList, ObjectItemList, PointsItemList, SegmentationItemList,
                              get_transforms, open_image, open_mask)
from fastmem.image_list import ImageList, ImageListInMemory, MemoryImageList
from fastmem.label_list import (CategoryList, FloatList, GANItemList, ItemLists, LabelLists, MultiCategoryList,
                                SegmentationLabelList)
from fastmem.dataset import CachedDataset, cached

__all__ = ['MemoryGuard', 'available_memory', 'human_bytes', 'memory_limits', 'shared_guard', 'total_memory', 'Recipe', 'MemoryPlan', 'probe', 'ImageCache', 'MemDL',
           'CacheStats', 'MemImageBlock', 'MemMaskBlock', 'MemoryCallback', 'CategoryList', 'FloatList', 'GANItemList', 'ImageList',
           'ImageListInMemory', 'ItemLists', 'LabelLists', 'MemoryImageList', 'MultiCategoryList', 'SegmentationLabelList',
           'CachedDataset', 'cached', 'DatasetType', 'ImageDataBunch', 'ImageImageList', 'ObjectItemList', 'PointsItemList',
           'SegmentationItemList', 'get_transforms', 'open_image', 'open_mask']
